"""What stands beside the numbers of a report: captions, definitions, and the papers' settings."""

from __future__ import annotations

# Each figure's caption, by its name; what follows a blank in the name is a group's label.
CAPTIONS = {
    "accuracy": "Accuracy on the validation images after each epoch of pretraining: of the linear "
    "classifier that is trained along (online), and of the nearest neighbours where they were "
    "asked for.",
    "mass": "The share of the softmax mass of the negatives that the hardest of them carry. They "
    "are ranked among all that were offered, before any of them was dropped. Where a policy keeps "
    "only the hardest (hardest_5, say), these carry 100 % by construction, and "
    "where it drops them, 0 %.",
    "effective": "The effective number of negatives of a query: by how few, all equally similar, "
    "the loss would be spread in the same way.",
    "similarity": "Mean similarity of queries to their positives and to the negatives that were "
    "offered. Of one or two groups, the shade holds nine tenths of the similarities.",
    "histogram": "How similarities are spread in each epoch: the stronger the colour, the more. "
    "The line is the median; nine tenths lie between the dotted ones. An epoch that was not "
    "recorded has the shade of the nearest one that was.",
    "same_class": "How many negatives are of the query's class, from the easiest percentile to the "
    "hardest, in the last quarter of the recorded epochs.",
    "depth": "How near the negatives are to the query in meaning: the depth in WordNet of what "
    "both classes have in common, in the last quarter of the recorded epochs.",
    "age": "How long ago the negatives of each difficulty came into the queue, counted in keys, in "
    "the last quarter of the recorded epochs.",
    "verbs": "How many negatives per query the policies drop, fill in from the reserve, and make, "
    "and for how many queries debiasing leaves negatives that teach nothing.",
    "images": "How often the same images are hard: for each image, the share of the queries that "
    "met it as a negative for which it was among the hardest 5 %, in the last quarter of the "
    "recorded epochs.",
    "images_in_queue": "The share of the queries that met an image as a negative for which it was "
    "among the hardest 5 %, in the last quarter of the recorded epochs. In a queue this says "
    "little of the images themselves: young and old keys are not equally hard, and an image that "
    "was met few times was mostly met at one age. For the images themselves, as in figure 6 of Cai "
    "et al. 2020, see figure 6 of solo-hardneg analyze.",
    "figure4a": "How many of the hardest 5 % and of the easiest 95 % of the negatives are of the "
    "query's class (Cai et al. 2020, figure 4a).",
    "figure4b": "How near both are to the query in WordNet (Cai et al. 2020, figure 4b).",
    "figure5a": "The share of negatives of the query's class in each difficulty percentile (Cai et "
    "al. 2020, figure 5a).",
    "figure5b": "Nearness in WordNet in each difficulty percentile (Cai et al. 2020, figure 5b).",
    "figure5c": "Mean similarity in each difficulty percentile (Cai et al. 2020, figure 5c).",
    "figure6": "For which share of the queries each negative is hard, beside ranks that were dealt "
    "out at random (Cai et al. 2020, figure 6).",
    "tsne": "Features of images in two dimensions, by class (Dong et al. 2023, figure 6).",
    "tsne_of_many": "Features of images in two dimensions. The ten classes with most images are "
    "coloured; the others are grey (as Dong et al. 2023, figure 6, for ten classes).",
}
TERMS = {
    "query, positive, negatives": "A query is one view of an image, its positive another view of "
    "the same image, and its negatives are views of other images; training draws the first two "
    "together and pushes the negatives away.",
    "similarity": "The cosine between the unit vectors of two views: 1 if they are equal, 0 if "
    "they have nothing in common.",
    "difficulty": "The rank of a negative's similarity among the negatives of its query: the more "
    "similar, the harder.",
    "band": "A range of difficulty, as shares from 0 (easiest) to 1 (hardest): [0.95, 1] is the "
    "hardest 5 %.",
    "percentile": "A hundredth of the negatives of a query by difficulty, 0 the easiest.",
    "softmax mass": "What each negative adds to the sum under the loss, exp(similarity / "
    "temperature) times its weight; shares of it say who is listened to.",
    "effective number": "One divided by the sum of the squared shares of the softmax mass: as many "
    "equally similar negatives would spread the mass in the same way.",
    "floored": "A query is floored where debiasing takes away more than its negatives carry; the "
    "loss then stands on its lower bound, and the negatives teach nothing.",
    "online, linear, kNN": "Three ways to measure a representation by its accuracy on labelled "
    "images: a classifier that is trained along, one that is trained afterwards on the frozen "
    "features, and a vote of the nearest neighbours.",
    "± and p": "± is the standard deviation between seeds; p is the probability of so large a "
    "difference or a larger one if there were none. Accuracies are compared by Welch's t-test, "
    "Holm-corrected for the number of groups compared by the same accuracy; hard and easy "
    "negatives by Student's, which takes both sides' spread for equal, without correction.",
    "seed": "The number from which all of a run's random choices follow; runs that differ in it "
    "alone show what chance does.",
}
SETTINGS = (
    "The papers' numbers are of linear evaluation after 200 epochs of pretraining: Cai et al. with "
    "ResNet-50 on ImageNet, Dong et al. with ResNet-18 on CIFAR and TinyImageNet. Where the runs "
    "here are smaller, compare the differences, not the accuracies."
)
TO_ALL = "Differences are to the group with all negatives of the same family."
CORRECTED = "p is that of Welch's t-test, Holm-corrected over the groups of each column."
NO_LINEAR = (
    "None of these runs has a linear evaluation, which the papers' numbers are of, so no numbers "
    "of ours stand beside them; make some with: solo-hardneg linear."
)
TESTS = (
    "Means over seeds, and p of Student's unpaired t-test, which takes both sides' spread for "
    "equal (Cai et al. 2020, section 4)"
)
