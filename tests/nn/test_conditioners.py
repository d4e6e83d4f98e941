"""Conditioners: one contract for every one of them, and what each does with its labels."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from condgen.nn.conditioners import Continuous, Embedding, Joint, LabelDropout, MultiLabel, OneHot, Unconditional

NAN, INFINITY = math.nan, math.inf


@dataclass
class Case:
    """A conditioner, labels it takes, and labels it refuses with the reason."""

    make: Any
    valid: list
    invalid: dict[str, list]


NOT_A_CLASS = {r"in \[0, 3\); got -1\.$": [0, -1], r"got 3. Pass num_classes=4": [3], "whole numbers": [0.5]}
CASES = {
    "one-hot": Case(lambda: OneHot(3), [2, 0, 1, 1], NOT_A_CLASS),
    "embedding": Case(lambda: Embedding(3, 5), [2, 0, 1, 1], NOT_A_CLASS),
    "multi-label": Case(
        lambda: MultiLabel(3), [[1, 0, 1], [0, 0, 0]], {r"\(batch, 3\); got \(2,\)": [1, 0], "0 or 1": [[0, 1, 2]]}
    ),
    "one label of many": Case(lambda: MultiLabel(1), [1, 0, 0], {r"0 or 1": [2]}),
    "continuous": Case(
        lambda: Continuous([1.0, 2.0], [3.0, 4.0]),
        [[1.5, 2.0], [0.0, -3.0], [1.0, 9.0]],
        {r"\(batch, 2\); got \(1, 3\)": [[1.0, 2.0, 3.0]], "finite": [[NAN, 0.0]]},
    ),
    "one continuous": Case(lambda: Continuous([1.0], [3.0]), [1.5, 2.0, 0.0], {"finite": [INFINITY]}),
    "joint": Case(
        lambda: Joint([OneHot(3), Continuous([0.0, 0.0], [1.0, 2.0]), MultiLabel(1)]),
        [[2.0, 1.5, 4.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, -1.0, 0.5, 0.0]],
        {
            r"\(batch, 4\); got \(1, 2\)": [[0.0, 1.0]],
            r"\[0, 3\); got 3": [[3.0, 0.0, 0.0, 0.0]],
            "finite": [[0.0, 0.0, NAN, 0.0]],
            "0 or 1": [[0.0, 0.0, 0.0, 0.5]],
        },
    ),
    "joint of one": Case(lambda: Joint([OneHot(3)]), [2, 0, 1], NOT_A_CLASS),
    "unconditional": Case(Unconditional, [5, -1, 0], {}),
    "dropout": Case(
        lambda: LabelDropout(OneHot(3), 0.5), [2, 0, -1, 1], {r"got 3. Pass num_classes=4": [-1, 3], "whole": [0.5]}
    ),
    "dropout of an embedding": Case(lambda: LabelDropout(Embedding(3, 4), 0.5), [2, 0, -1, 1], {r"got 3": [3]}),
    "dropout of many labels": Case(
        lambda: LabelDropout(MultiLabel(2), 0.5), [[1, 0], [-1, -1], [1, 1]], {"0 or 1": [[2, 0]]}
    ),
    "dropout of continuous": Case(
        lambda: LabelDropout(Continuous([1.0], [2.0]), 0.5), [[0.5], [NAN]], {"finite": [[INFINITY]]}
    ),
    "dropout of a joint": Case(
        lambda: LabelDropout(Joint([OneHot(2), Continuous([1.0], [2.0])]), 0.5),
        [[1.0, 0.5], [NAN, 0.5], [0.0, NAN]],
        {r"\[0, 2\); got 2": [[2.0, 0.0]]},
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
refusals = [(name, message, labels) for name, case in CASES.items() for message, labels in case.invalid.items()]


@each
def test_the_condition_is_one_row_of_dim_numbers_per_label(case):
    conditioner, y = case.make(), torch.tensor(case.valid)
    conditioner.check(y)
    c = conditioner(y)
    assert c.shape == (len(y), conditioner.dim)
    assert c.dtype == torch.get_default_dtype()
    assert c.isfinite().all()


@each
def test_columns_is_the_width_of_the_labels(case):
    conditioner, y = case.make(), torch.tensor(case.valid)
    assert conditioner.columns in (y[0].numel(), 0)
    assert (conditioner.columns == 0) == isinstance(conditioner, Unconditional)


@each
def test_permuting_the_batch_permutes_the_condition(case):
    conditioner, y = case.make(), torch.tensor(case.valid)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    assert torch.equal(conditioner(y[order]), conditioner(y)[order])


@each
def test_different_labels_give_different_conditions(case):
    conditioner, y = case.make(), torch.tensor(case.valid)
    rows = len({tuple(row.tolist()) for row in y.nan_to_num(-99.0).reshape(len(y), -1)})
    missing = sum("nan" in str(row) for row in case.valid)
    expected = 1 if conditioner.dim == 0 else rows - max(0, missing - 1)
    assert len({tuple(row.tolist()) for row in conditioner(y)}) == expected


def holds(dtype, case):
    """Whether this type says the same as the labels of a case; missing is -1 for integers and NaN for floats."""
    y = torch.tensor(case.valid)
    same = torch.equal(y.to(dtype).double(), y.double())
    return same and (y.is_floating_point() or not dtype.is_floating_point or bool((y >= 0).all()))


DTYPES = (torch.float64, torch.float32, torch.int32, torch.uint8)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in DTYPES if holds(dtype, case)]
)
def test_the_type_of_the_labels_does_not_matter(name, dtype):
    conditioner, y = CASES[name].make(), torch.tensor(CASES[name].valid)
    conditioner.check(y.to(dtype))
    assert torch.equal(conditioner(y.to(dtype)).float(), conditioner(y))


@each
def test_labels_of_one_column_come_with_or_without_it(case):
    conditioner, y = case.make(), torch.tensor(case.valid)
    if conditioner.columns == 1:
        conditioner.check(y.reshape(-1, 1))
        conditioner.check(y.reshape(-1))


@each
def test_no_labels_are_no_fault(case):
    """A slice of the labels, such as those that are not missing, may be empty."""
    case.make().check(torch.tensor(case.valid)[:0])


@pytest.mark.parametrize(("name", "message", "labels"), refusals)
def test_labels_it_cannot_take_are_refused_with_the_reason(name, message, labels):
    with pytest.raises(ValueError, match=message):
        CASES[name].make().check(torch.tensor(labels))


@pytest.mark.parametrize("shape", [(), (2, 2), (2, 1, 1)])
def test_class_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"one class label per image, shape \(batch,\); got shape"):
        OneHot(3).check(torch.zeros(shape))


@pytest.mark.parametrize("label", [NAN, INFINITY, -INFINITY])
def test_labels_that_are_no_numbers_are_refused(label):
    with pytest.raises(ValueError, match="whole numbers as class labels; got fractions, NaN or infinity"):
        OneHot(3).check(torch.tensor([0.0, label]))


def test_one_hot_is_the_identity_s_row():
    assert torch.equal(OneHot(4)(torch.arange(4)), torch.eye(4))


def test_embedding_is_the_row_of_its_table():
    embedding = Embedding(3, 5)
    assert torch.equal(embedding(torch.tensor([2, 0])), embedding.vectors.weight[[2, 0]])


def test_multi_label_is_the_labels_themselves():
    y = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert torch.equal(MultiLabel(3)(y), y.float())


def test_continuous_standardises_the_labels_it_was_made_of():
    y = torch.tensor([[1.0, -20.0], [5.0, 40.0], [3.0, 1.0]], dtype=torch.float64)
    c = Continuous.of(y)(y)
    torch.testing.assert_close(c.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(c.std(0, unbiased=False), torch.ones(2).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mean", "std"), [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0], [-1.0]), ([1.0], [NAN])])
def test_a_spread_must_be_positive(mean, std):
    with pytest.raises(ValueError, match="as many positive spreads as means"):
        Continuous(mean, std)


def test_labels_that_never_vary_cannot_be_standardised():
    with pytest.raises(ValueError, match="positive spreads"):
        Continuous.of(torch.ones(4, 1))


def test_joint_is_its_parts_side_by_side():
    parts = [OneHot(3), Continuous([1.0, 2.0], [3.0, 4.0]), Embedding(2, 4)]
    y = torch.tensor([[2.0, 5.0, 6.0, 1.0], [0.0, 1.0, -2.0, 0.0]])
    joint = Joint(parts)(y)
    assert torch.equal(joint[:, :3], parts[0](y[:, 0]))
    assert torch.equal(joint[:, 3:5], parts[1](y[:, 1:3]))
    assert torch.equal(joint[:, 5:], parts[2](y[:, 3]))


def test_joint_refuses_a_part_that_would_never_drop_a_label():
    with pytest.raises(ValueError, match=r"LabelDropout\(Joint"):
        Joint([LabelDropout(OneHot(2), 0.1), OneHot(3)])


class TestLabelDropout:
    n = 20_000
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("probability", [0.0, 0.1, 0.75, 1.0])
    def test_the_share_dropped_in_training_is_the_probability(self, probability):
        c = LabelDropout(OneHot(3), probability).train()(torch.ones(self.n, dtype=torch.int64), self.noise)
        error = math.sqrt(probability * (1 - probability) / self.n)
        assert abs(c[:, -1].mean().item() - probability) <= 4 * error

    def test_nothing_is_dropped_in_evaluation_or_without_noise(self):
        y, dropout = torch.ones(self.n, dtype=torch.int64), LabelDropout(OneHot(3), 0.9)
        assert dropout.train()(y)[:, -1].sum() == 0
        assert dropout.eval()(y, self.noise)[:, -1].sum() == 0

    def test_a_dropped_label_leaves_nothing_but_the_flag(self):
        y = torch.arange(3).repeat(100)
        c = LabelDropout(OneHot(3), 0.5).train()(y, self.noise[:300])
        dropped = c[:, -1] == 1
        assert 0 < dropped.sum() < 300
        assert torch.equal(c[dropped], torch.tensor([0.0, 0, 0, 1]).expand(int(dropped.sum()), 4))
        assert torch.equal(c[~dropped, :3], OneHot(3)(y)[~dropped])

    @pytest.mark.parametrize(
        ("inner", "y", "missing"),
        [
            (OneHot(2), torch.tensor([1, -1, 0]), [0, 1, 0]),
            (MultiLabel(2), torch.tensor([[1, 0], [-1, 0], [0, 0]]), [0, 1, 0]),
            (Continuous([0.0], [1.0]), torch.tensor([-5.0, 0.0, NAN]), [0, 0, 1]),
            (
                Joint([OneHot(2), Continuous([0.0], [1.0])]),
                torch.tensor([[NAN, 1.0], [1.0, NAN], [0.0, -1.0]]),
                [1, 1, 0],
            ),
        ],
    )
    def test_negative_classes_and_nan_are_missing(self, inner, y, missing):
        c = LabelDropout(inner, 0.1).eval()(y)
        assert c[:, -1].tolist() == missing
        assert c[c[:, -1] == 1, :-1].abs().sum() == 0

    def test_missing_labels_teach_the_embedding_nothing(self):
        dropout = LabelDropout(Embedding(2, 3), 0.1)
        dropout(torch.tensor([-1, 1])).sum().backward()
        assert torch.equal(dropout.conditioner.vectors.weight.grad, torch.tensor([[0.0] * 3, [1.0] * 3]))

    @pytest.mark.parametrize("probability", [-0.1, 1.1, NAN])
    def test_the_probability_must_be_one(self, probability):
        with pytest.raises(ValueError, match=r"probability in \[0, 1\]"):
            LabelDropout(OneHot(2), probability)

    def test_any_module_with_the_contract_can_be_wrapped(self):
        class Sign(nn.Module):
            dim = columns = 1

            def forward(self, y):
                return y.sign()[:, None].float()

            def check(self, y):
                pass

        assert LabelDropout(Sign(), 0.5)(torch.tensor([5, -1])).tolist() == [[1.0, 0.0], [0.0, 1.0]]
