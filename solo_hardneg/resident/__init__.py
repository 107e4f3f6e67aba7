"""Small datasets that stay on the trainer's device, where their views are made.

The hosts decode and augment every image through PIL in worker processes, and for images of CIFAR's
size a GPU waits for them. With ``data.format=resident`` the images are kept as bytes on the device,
and each batch of views is made there at once, by the same steps and from the same distributions.

``recipe`` reads what the steps are, ``draw`` draws their random numbers, ``resample`` and
``colour`` are the arithmetic, ``views`` puts them together, ``images`` reads a dataset, and
``callback`` brings all of it into a run of either host.
"""
