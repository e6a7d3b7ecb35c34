"""What the exports are for: LightFM, trained on a day that the worker closed, finds the taste that was planted."""

import numpy
import pyarrow.dataset
import pytest
from lightfm import LightFM
from scipy.sparse import coo_matrix

WEIGHT_MAX = 5.0
K = 10


@pytest.fixture(scope="module")
def split(crossing, exports):
    """One weight for each (user, video), as exports.md says; a fifth of each user's videos held out."""
    columns = ["user_id", "video_id", "interaction_weight"]
    frame = pyarrow.dataset.dataset(exports / crossing.day, format="parquet").to_table(columns=columns).to_pandas()
    frame = frame[frame.interaction_weight > 0].groupby(["user_id", "video_id"], as_index=False).interaction_weight.max()
    users, user_of = numpy.unique(frame.user_id, return_inverse=True)
    videos, video_of = numpy.unique(frame.video_id, return_inverse=True)
    weights = (frame.interaction_weight / WEIGHT_MAX).to_numpy(numpy.float32)
    held_out = numpy.random.default_rng(1).random(len(frame)) < 0.2
    shape = (len(users), len(videos))

    def matrix(values, rows):
        return coo_matrix((values[rows], (user_of[rows], video_of[rows])), shape=shape, dtype=numpy.float32)

    ones = numpy.ones(len(frame), numpy.float32)
    # Interactions and weights from the same arrays: LightFM wants them in the same order.
    return matrix(ones, ~held_out), matrix(weights, ~held_out), matrix(ones, held_out)


def precision_at_k(scores, train, test):
    """Mean over users with something held out; what they were trained on is not recommended again."""
    scores = numpy.where(train.toarray() > 0, -numpy.inf, scores)
    best = numpy.argpartition(-scores, K, axis=1)[:, :K]
    wanted = test.toarray() > 0
    hits = numpy.take_along_axis(wanted, best, axis=1).sum(axis=1)
    return (hits[wanted.any(axis=1)] / K).mean()


def test_beats_popularity(split):
    train, weights, test = split
    assert train.shape[0] > 300 and train.nnz > 5000
    popularity = numpy.tile(numpy.asarray(train.sum(axis=0)), (train.shape[0], 1))
    baseline = precision_at_k(popularity, train, test)
    model = LightFM(no_components=16, loss="warp", random_state=1)
    model.fit(train, sample_weight=weights, epochs=15, num_threads=1)
    user_biases, user_vectors = model.get_user_representations()
    video_biases, video_vectors = model.get_item_representations()
    scores = user_vectors @ video_vectors.T + video_biases
    reached = precision_at_k(scores, train, test)
    print(f"precision@{K}: LightFM {reached:.3f}, popularity {baseline:.3f}")
    assert reached >= 1.05 * baseline
