"""Texts of a report: captions and alternative texts of its figures, terms, and remarks."""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """The caption of a figure, and its alternative text for screen readers."""

    text: str
    alt: str


CAPTIONS = {
    "accuracy": Caption(
        "Accuracy on the validation images after each epoch of pretraining: of the linear "
        "classifier trained along (online) and, if enabled, of the nearest neighbours (kNN).",
        "Curves of the accuracy over epochs, one per group.",
    ),
    "mass": Caption(
        "Share of the softmax mass of the negatives on the hardest ones, ranked among all "
        "negatives before any is dropped. By construction it is 100 % where a policy keeps only "
        "these (hardest_5, say) and 0 % where it drops them. Synthetic negatives are not ranked.",
        "Curves over epochs of the share of softmax mass, one panel per band.",
    ),
    "effective": Caption(
        "Effective number of negatives of a query: the number of equally similar negatives that "
        "would concentrate the loss as much.",
        "Curves of the effective number of negatives over epochs, one per group.",
    ),
    "similarity": Caption(
        "Mean similarity of queries to their positives and to their negatives. Of one or two "
        "groups, the shade shows the middle 90 % of the similarities.",
        "Curves of mean similarities over epochs, one panel each for positives and negatives.",
    ),
    "histogram": Caption(
        "Distribution of similarities in each epoch: the stronger the colour, the more of them. "
        "The line is the median, the dotted lines bound the middle 90 %. An epoch that was not "
        "recorded has the shade of the nearest one.",
        "Shades of the distribution of similarities over epochs.",
    ),
    "same_class": Caption(
        "Share of negatives of the query's class, from the easiest percentile to the hardest, in "
        "the last quarter of the recorded epochs.",
        "Curves of the share of the query's class over difficulty percentiles, one per group.",
    ),
    "depth": Caption(
        "Nearness in meaning of negatives and query: the depth in WordNet of the common ancestor "
        "of their classes, in the last quarter of the recorded epochs.",
        "Curves of the depth in WordNet over difficulty percentiles, one per group.",
    ),
    "age": Caption(
        "Age of the negatives in the queue, counted in keys, by difficulty, in the last quarter of "
        "the recorded epochs.",
        "Curves of the mean age over difficulty percentiles, one per group.",
    ),
    "verbs": Caption(
        "Negatives per query that the policies drop, fill in from the reserve and synthesize, and "
        "the share of queries whose negatives teach nothing after debiasing.",
        "Curves over epochs of what the policies do, one panel per action.",
    ),
    "dropped": Caption(
        "What the policies drop, as a guess of which negatives are of the query's class: precision "
        "(the share of that class among the dropped negatives) and recall (the share of the "
        "negatives of that class that are dropped). A band that is kept drops the rest. With "
        "drop={label: same} both are 100 %.",
        "Curves of precision and recall over epochs, one per group.",
    ),
    "dropped_by_difficulty": Caption(
        "The same in each difficulty percentile of the negatives, late in training.",
        "Curves of precision and recall over difficulty percentiles, one per group.",
    ),
    "spread": Caption(
        "The recorded embeddings of each epoch: RankMe (from 1, collapsed, to their dimension; "
        "Garrido et al. 2023), alignment and uniformity (Wang & Isola 2020).",
        "Curves of RankMe, alignment and uniformity over epochs, one per group.",
    ),
    "images": Caption(
        "How often the same images are hard: for each image, the share of the queries that met it "
        "as a negative for which it was among the hardest 5 %, in the last quarter of the recorded "
        "epochs.",
        "Histograms of how often images are hard, beside what chance gives.",
    ),
    "images_in_queue": Caption(
        "Share of the queries that met an image as a negative for which it was among the hardest "
        "5 %, in the last quarter of the recorded epochs. With a queue this mixes images and ages: "
        "young and old keys are not equally hard, and an image that was met few times was mostly "
        "met at one age. For the images themselves (Cai et al. 2020, figure 6), see figure 6 of "
        "solo-hardneg analyze.",
        "Histograms of how often images in the queue are hard.",
    ),
    "figure4a": Caption(
        "Share of the query's class among the hardest 5 % and the easiest 95 % of the negatives "
        "(Cai et al. 2020, figure 4a).",
        "Bars of the share of the query's class for hard and easy negatives.",
    ),
    "figure4b": Caption(
        "Nearness of both to the query in WordNet (Cai et al. 2020, figure 4b).",
        "Bars of the depth in WordNet for hard and easy negatives.",
    ),
    "figure5a": Caption(
        "Share of negatives of the query's class in each difficulty percentile (Cai et al. 2020, "
        "figure 5a).",
        "Curves of the share of the query's class over difficulty percentiles.",
    ),
    "figure5b": Caption(
        "Nearness in WordNet in each difficulty percentile (Cai et al. 2020, figure 5b).",
        "Curves of the depth in WordNet over difficulty percentiles.",
    ),
    "figure5c": Caption(
        "Mean similarity in each difficulty percentile (Cai et al. 2020, figure 5c).",
        "Curves of the mean similarity over difficulty percentiles.",
    ),
    "figure6": Caption(
        "Share of the queries for which each negative is hard, beside shuffled ranks (Cai et al. "
        "2020, figure 6).",
        "Histograms of how often each negative is hard.",
    ),
    "tsne": Caption(
        "Features of images in two dimensions, by class (Dong et al. 2023, figure 6).",
        "A scatter plot of features, coloured by class.",
    ),
    "tsne_of_many": Caption(
        "Features of images in two dimensions. The ten classes with most images are coloured; the "
        "others are grey (as Dong et al. 2023, figure 6, for ten classes).",
        "A scatter plot of features, coloured by class.",
    ),
}
TERMS = {
    "query, positive, negatives": "A query is one view of an image, its positive another view of "
    "the same image, and its negatives are views of other images. Training pulls the first two "
    "together and pushes the negatives away.",
    "similarity": "The cosine between the unit vectors of two views: 1 if they are equal, 0 if "
    "they are orthogonal.",
    "difficulty": "The rank of a negative's similarity among the negatives of its query: the more "
    "similar, the harder.",
    "band": "A range of difficulty, as shares from 0 (easiest) to 1 (hardest): [0.95, 1] is the "
    "hardest 5 %.",
    "percentile": "A hundredth of the negatives of a query by difficulty, 0 the easiest.",
    "softmax mass": "A negative's term in the sum of the loss, exp(similarity / temperature) times "
    "its weight. Its share of the sum is its influence on the loss.",
    "effective number": "One divided by the sum of the squared shares of the softmax mass: the "
    "number of equally similar negatives that would concentrate the mass as much.",
    "floored": "A query is floored where debiasing subtracts more than its negatives have; the "
    "loss is then at its lower bound, and the negatives teach nothing.",
    "precision and recall": "Of what a policy drops: the share of the query's class among the "
    "dropped negatives, and the share of the negatives of that class that are dropped. The better "
    "it finds false negatives, the higher are both.",
    "RankMe, alignment, uniformity": "RankMe is the effective rank of the embeddings, from 1 "
    "(collapsed) to their dimension. Alignment is the mean squared distance of positives, and "
    "uniformity the logarithm of the mean of exp(-2 · squared distance) over pairs of images; the "
    "lower both are, the nearer are positives and the more evenly spread are images.",
    "online, linear, kNN": "Three ways to measure a representation by its accuracy on labelled "
    "images: a classifier trained along with it, one trained afterwards on the frozen features, "
    "and a vote of the nearest neighbours.",
    "± and p": "± is the standard deviation between seeds; p is the probability of a difference "
    "this large if there were none. Accuracies are compared by Welch's t-test, Holm-corrected for "
    "the number of groups compared by the same accuracy; hard and easy negatives by Student's "
    "t-test, which assumes equal variances, without correction.",
    "seed": "The number that determines all of a run's random choices. Runs that differ in it "
    "alone show the effect of chance.",
}
PAPER_SETTINGS = (
    "The papers' numbers are of linear evaluation after 200 epochs of pretraining: Cai et al. with "
    "ResNet-50 on ImageNet, Dong et al. with ResNet-18 on CIFAR and TinyImageNet. Where the runs "
    "here are smaller, compare the differences, not the accuracies."
)
UNITS = "Accuracies are in percent, differences in points."
BASELINE = "Differences are to the group with all negatives of the same family."
CORRECTED = "p is from Welch's t-test, Holm-corrected over the groups of each column."
NO_LINEAR = (
    "None of these runs has a linear evaluation to compare; run one with: solo-hardneg linear."
)
TESTS = (
    "Means over seeds, and p of Student's unpaired t-test, which assumes equal variances (Cai et "
    "al. 2020, section 4)"
)
