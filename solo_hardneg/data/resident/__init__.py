"""``data.format=resident``: small datasets kept on the trainer's device, where views are made.

Otherwise PIL decodes and augments each image in worker processes, which at CIFAR's size is slower
than a GPU trains. The steps and their distributions are those of the hosts' pipelines.

``recipe`` reads the steps, ``params`` draws their random parameters, ``resample`` and ``colour``
compute them, ``views`` applies them, ``images`` reads a dataset, and ``callback`` joins it to a run
of either host.
"""
