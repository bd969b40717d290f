"""Figures of token distributions and their intervals, each against a naive computation in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from quantkit.verify.intervals import mcnemar, mean_interval, quantile_interval, wilson_floor
from quantkit.verify.metrics import (
    TokenMetrics,
    histogram,
    perplexity,
    summarize,
    token_metrics,
    topk_metrics,
)
from quantkit.verify.report import Interval, TokenSummary
from quantkit.verify.summary import _widened


def some_logits(scale: float = 3.0, rows: int = 23, vocabulary: int = 57) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(rows, vocabulary)) * scale
    candidate = reference + generator.normal(size=(rows, vocabulary)) * 0.3
    return reference, candidate, generator.integers(0, vocabulary, rows)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


def probabilities(logits: np.ndarray) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / math.fsum(powers) for power in powers]


# ---- whole distributions ----


def test_kl_by_hand():
    reference, candidate = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    metrics = token_metrics(reference, candidate, torch.tensor([1]))
    assert float(metrics.kl) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert float(token_metrics(candidate, reference, torch.tensor([1])).kl) == pytest.approx(0.1308120, abs=1e-6)
    assert float(metrics.nll_reference) == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics.nll_candidate) == pytest.approx(-math.log(0.75), abs=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_token_metrics_against_a_naive_float64_oracle(scale):
    reference, candidate, targets = some_logits(scale)
    metrics = token_metrics(*tensors(reference, candidate), torch.tensor(targets))
    for row, target in enumerate(targets):
        p, q = probabilities(reference[row]), probabilities(candidate[row])
        kl = math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
        assert float(metrics.kl[row]) == pytest.approx(kl, abs=2e-6 * scale + 1e-6)
        assert bool(metrics.agree[row]) == (reference[row].argmax() == candidate[row].argmax())
        first, second = ({*np.argsort(-logits)[:5].tolist()} for logits in (reference[row], candidate[row]))
        assert float(metrics.top5[row]) == pytest.approx(len(first & second) / 5)
        assert float(metrics.nll_reference[row]) == pytest.approx(-math.log(p[target]), rel=1e-5, abs=1e-5)
        assert float(metrics.nll_candidate[row]) == pytest.approx(-math.log(q[target]), rel=1e-5, abs=1e-5)
        shift = candidate[row] - reference[row]
        centred = [value - math.fsum(shift) / len(shift) for value in shift]
        assert float(metrics.logit_square[row]) == pytest.approx(math.fsum(c * c for c in centred) / 57, rel=1e-4)
        assert float(metrics.coverage[row]) == 1.0


def test_a_constant_added_to_the_logits_is_no_error():
    reference, _, targets = some_logits()
    metrics = token_metrics(*tensors(reference, reference + 5), torch.tensor(targets))
    assert float(metrics.kl.max()) < 1e-6
    assert float(metrics.logit_square.max()) < 1e-10


def test_bfloat16_logits_are_compared_in_float32():
    reference = torch.randn(9, 300, generator=torch.manual_seed(0)).to(torch.bfloat16)
    candidate = reference + torch.tensor(0.0625, dtype=torch.bfloat16) * (torch.arange(300) % 2)
    targets = torch.zeros(9, dtype=torch.long)
    expected = token_metrics(reference.double(), candidate.double(), targets)
    assert expected.kl.dtype == torch.float64
    torch.testing.assert_close(
        token_metrics(reference, candidate, targets).kl.double(), expected.kl, atol=1e-6, rtol=1e-4
    )


def test_extreme_logits_give_no_nan():
    reference = torch.tensor([[0.0, -math.inf, -500.0], [0.0, 0.0, -math.inf]])
    candidate = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, -math.inf, 0.0]])
    kl = token_metrics(reference, candidate, torch.tensor([0, 0])).kl
    assert float(kl[0]) == 0.0
    assert math.isinf(float(kl[1]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_candidate_that_overflows_is_not_a_perfect_one(bad):
    reference, candidate = torch.zeros(1, 4), torch.tensor([[0.0, bad, 0.0, 0.0]])
    metrics = token_metrics(reference, candidate, torch.tensor([0]))
    assert math.isinf(float(metrics.kl))
    assert math.isinf(float(metrics.nll_candidate))
    found = summarize(metrics, torch.zeros(1, dtype=torch.long))
    assert found is not None and found.kl_mean.value == 1e4
    assert found.perplexity_candidate == pytest.approx(math.exp(700))


# ---- the largest probabilities only ----


def largest(candidate: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [R, k] in a mixed order and their log-probabilities."""
    logp = tensors(candidate)[0].log_softmax(-1)
    values, ids = logp.topk(k)
    return ids.flip(-1), values.flip(-1)


NAMES = ("kl", "agree", "top5", "nll_reference", "nll_candidate", "coverage")


def test_topk_with_the_whole_vocabulary_is_exact():
    reference, candidate, targets = some_logits()
    exact = token_metrics(*tensors(reference, candidate), torch.tensor(targets))
    ids, logp = largest(candidate, 57)
    untold = torch.full((23,), math.nan)
    found = topk_metrics(tensors(reference)[0], ids, logp, untold, torch.tensor(targets))
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), atol=2e-5, rtol=1e-4)
    assert found.logit_square.isnan().all()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_topk_kl_is_a_lower_bound_that_grows_with_k(k):
    reference, candidate, targets = some_logits()
    given = (torch.full((23,), math.nan), torch.tensor(targets))
    exact = token_metrics(*tensors(reference, candidate), torch.tensor(targets))
    found = topk_metrics(tensors(reference)[0], *largest(candidate, k), *given)
    more = topk_metrics(tensors(reference)[0], *largest(candidate, k + 5), *given)
    assert (found.kl <= exact.kl + 1e-5).all()
    assert (found.kl <= more.kl + 1e-5).all()
    assert float(found.kl.mean()) > 0
    for row in range(23):
        p, q = probabilities(reference[row]), probabilities(candidate[row])
        told = np.argsort(-candidate[row])[:k]
        covered, rest = sum(p[i] for i in told), 1 - sum(q[i] for i in told)
        kl = math.fsum(p[i] * math.log(p[i] / q[i]) for i in told) + (1 - covered) * math.log((1 - covered) / rest)
        assert float(found.kl[row]) == pytest.approx(kl, abs=2e-5)
        assert float(found.coverage[row]) == pytest.approx(covered, abs=1e-5)
        assert found.nll_candidate[row].isnan() == (targets[row] not in told)


def test_topk_entries_of_minus_one_are_no_tokens():
    """Token 0 is the reference's first choice; an engine that names nothing must not be read as naming it."""
    reference = torch.tensor([[9.0, 1.0, 0.5, 0.2, 0.1, 0.0]]).expand(2, 6)
    ids = torch.tensor([[-1, -1, -1], [-1, 1, -1]])
    logp = torch.tensor([[-math.inf] * 3, [-math.inf, -0.1, -math.inf]])
    metrics = topk_metrics(reference, ids, logp, torch.full((2,), math.nan), torch.tensor([0, 0]))
    assert metrics.agree.tolist() == [False, False]
    assert metrics.top5.tolist() == pytest.approx([0.0, 0.2])
    assert metrics.nll_candidate.isnan().all()
    assert metrics.coverage.tolist() == pytest.approx([0.0, float(reference[1].softmax(-1)[1])], abs=1e-6)
    assert float(metrics.kl[0]) == pytest.approx(0.0, abs=1e-5), "nothing told, nothing known"
    assert float(metrics.kl[1]) > 1


def test_topk_the_stated_target_comes_first():
    reference, ids = torch.zeros(3, 4), torch.tensor([[0, 1]] * 3)
    logp = torch.tensor([[0.4, 0.3]] * 3).log()
    stated = torch.tensor([math.log(0.2), math.nan, math.nan])
    metrics = topk_metrics(reference, ids, logp, stated, torch.tensor([1, 1, 3]))
    assert metrics.nll_candidate[:2].tolist() == pytest.approx([-math.log(0.2), -math.log(0.3)])
    assert metrics.nll_candidate[2].isnan()


# ---- summaries ----


def made(kl: list[float], **columns: torch.Tensor) -> TokenMetrics:
    values = torch.tensor(kl)
    base = {"agree": values < 0.25, "top5": torch.ones_like(values), "nll_reference": torch.full_like(values, 0.5)}
    base |= {"nll_candidate": torch.full_like(values, 0.5), "logit_square": values, "coverage": torch.ones_like(values)}
    return TokenMetrics(kl=values, **(base | columns))


def test_summary_by_hand():
    nll = torch.tensor([math.log(2.0)] * 5)
    metrics = made([0.0, 0.1, 0.2, 0.3, 4.4], nll_reference=nll, nll_candidate=2 * nll)
    summary = summarize(metrics, torch.tensor([0, 0, 3, 3, 7]))
    assert summary is not None
    assert summary.tokens == 5
    assert summary.kl_mean.value == pytest.approx(1.0)
    assert summary.kl_p50 == pytest.approx(0.2)
    for name, q in (("kl_p90", 0.9), ("kl_p95", 0.95), ("kl_p999", 0.999)):
        assert getattr(summary, name) == pytest.approx(float(np.quantile([0.0, 0.1, 0.2, 0.3, 4.4], q)), rel=1e-6)
    assert summary.kl_p99.value == pytest.approx(float(np.quantile([0.0, 0.1, 0.2, 0.3, 4.4], 0.99)), rel=1e-6)
    assert summary.kl_max == pytest.approx(4.4)
    assert summary.top1.value == pytest.approx(0.6)
    assert (summary.perplexity_reference, summary.perplexity_candidate) == pytest.approx((2.0, 4.0))
    assert summary.perplexity_ratio.value == pytest.approx(2.0)
    assert summary.perplexity_ratio.low == pytest.approx(summary.perplexity_ratio.high)
    assert summary.rms_dp == pytest.approx(0.25)
    assert summary.logit_rms == pytest.approx(1.0)
    assert summarize(made([]), torch.tensor([], dtype=torch.long)) is None


def test_a_ruined_model_still_gives_numbers_that_can_be_written():
    nll = torch.tensor([0.5, 0.5])
    summary = summarize(made([math.inf, 1.0], nll_candidate=nll * 1e5), torch.tensor([0, 1]))
    assert summary is not None
    assert summary.kl_max == 1e4
    assert TokenSummary.model_validate_json(summary.model_dump_json()) == summary
    assert math.isfinite(summary.perplexity_candidate) and math.isfinite(summary.perplexity_ratio.high)
    assert summary.logit_rms is None


def test_positions_whose_target_is_untold_are_left_out_of_the_perplexity():
    untold = torch.tensor([0.7, math.nan, 0.9])
    summary = summarize(made([0.1, 0.1, 0.1], nll_candidate=untold), torch.tensor([0, 0, 1]))
    assert summary is not None
    assert summary.perplexity_candidate == pytest.approx(math.exp(0.8))
    assert summary.perplexity_ratio.value == pytest.approx(math.exp(0.3))
    assert summary.rms_dp == pytest.approx(
        math.sqrt(((math.exp(-0.7) - math.exp(-0.5)) ** 2 + (math.exp(-0.9) - math.exp(-0.5)) ** 2) / 2), rel=1e-5
    )
    nothing = summarize(made([0.1], nll_candidate=torch.tensor([math.nan])), torch.tensor([0]))
    assert nothing is not None and nothing.perplexity_candidate is None


def test_perplexity_and_histogram_by_hand():
    assert perplexity(torch.tensor([1.0, 3.0])) == pytest.approx(math.exp(2))
    found = histogram({"text": torch.tensor([0.0, 1e-12, 1.1e-8, 0.11, 99.0, math.inf]), "image": torch.tensor([1.0])})
    assert len(found.edges) == len(found.counts["text"]) + 1
    assert found.counts["text"][0] == 3
    assert found.counts["text"][-1] == 2
    place = found.edges.index(-1.0)
    assert found.counts["text"][place] == 1 and sum(found.counts["text"]) == 6
    assert found.counts["image"][found.edges.index(0.0)] == 1


# ---- intervals ----


def clustered(generator: np.random.Generator, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Token values and their items: items of unlike length, tokens of one item alike; the mean of all is 1."""
    owners = np.repeat(np.arange(items), generator.integers(5, 40, items))
    levels = generator.gamma(4.0, 0.25, items)
    return levels[owners] * generator.gamma(2.0, 0.5, len(owners)), owners


def test_mean_interval_against_plain_resampling_of_items():
    values, owners = clustered(np.random.default_rng(1), 60)
    sums, counts = np.bincount(owners, weights=values), np.bincount(owners).astype(float)
    generator, means = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = generator.integers(0, 60, 60)
        means.append(sum(sums[item] for item in drawn) / sum(counts[item] for item in drawn))
    found = mean_interval(sums, counts)
    assert found.value == pytest.approx(values.mean())
    width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.08 * width)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.08 * width)


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    generator, hits, naive = np.random.default_rng(2), 0, 0
    for _ in range(400):
        values, owners = clustered(generator, 80)
        found = mean_interval(np.bincount(owners, weights=values), np.bincount(owners).astype(float))
        hits += found.low <= 1 <= found.high
        half = 1.96 * values.std() / math.sqrt(len(values))
        naive += abs(values.mean() - 1) <= half
    assert 0.92 <= hits / 400 <= 0.98
    assert naive / 400 < 0.8, "tokens taken for independent would claim too much"


def test_quantile_interval_against_plain_resampling_and_its_coverage():
    generator = np.random.default_rng(3)
    values, owners = clustered(generator, 60)
    parts = [values[owners == item] for item in range(60)]
    drawn = [np.concatenate([parts[i] for i in generator.integers(0, 60, 60)]) for _ in range(1500)]
    expected = np.quantile([np.quantile(one, 0.99) for one in drawn], [0.025, 0.975])
    found = quantile_interval(values, owners.astype(np.int64), 0.99, 60)
    assert found.value == np.quantile(values, 0.99)
    assert [found.low, found.high] == pytest.approx(expected, rel=0.06)
    # the true 99th percentile, from one large draw
    truth, hits = np.quantile(clustered(generator, 100_000)[0], 0.99), 0
    for _ in range(200):
        values, owners = clustered(generator, 120)
        found = quantile_interval(values, owners.astype(np.int64), 0.99, 120)
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_of_one_item_and_of_equal_values_have_no_width():
    assert mean_interval(np.asarray([3.0]), np.asarray([2.0])) == Interval(value=1.5, low=1.5, high=1.5)
    zeros = quantile_interval(np.zeros(5000), np.repeat(np.arange(50), 100), 0.99, 50)
    assert zeros == Interval(value=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (3, 4), (1, 9), (6, 6)])
def test_mcnemar_against_counting_all_outcomes(worse, better):
    """Of all 2^n ways in which n fair coins can fall, the share that is at least as uneven."""
    n, gap = worse + better, abs(worse - better)
    outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    expected = sum(abs(2 * heads - n) >= gap for heads in outcomes) / len(outcomes)
    assert mcnemar(worse, better) == pytest.approx(expected)
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_wilson_widens_a_share_of_everything():
    beyond = wilson_floor(Interval(value=0.9, low=0.7, high=1.1), 10)
    assert beyond.high == 1.0, "a share ends at 1"
    found = wilson_floor(Interval(value=1.0, low=1.0, high=1.0), 10)
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert (found.value, found.high) == (1.0, 1.0)
    wide = Interval(value=0.5, low=0.0, high=1.0)
    assert wilson_floor(wide, 10) == wide, "never narrower than the bootstrap"


def test_agresti_min_widens_an_accuracy_difference():
    """By hand, Agresti and Min 2005: half a pair added to each of the four cells of the table."""
    agreed = _widened(Interval(value=0.0, low=0.0, high=0.0), 0, 0, 20)
    assert agreed.high == pytest.approx(1.959964 / 22)
    assert agreed.low == -agreed.high
    worse, better, items = 7.5, 2.5, 52
    spread = math.sqrt(worse + better - (better - worse) ** 2 / items) / items
    found = _widened(Interval(value=-0.1, low=-0.1, high=-0.1), 7, 2, 50)
    assert found.low == pytest.approx((better - worse) / items - 1.959964 * spread)
    assert found.high == pytest.approx((better - worse) / items + 1.959964 * spread)
    assert found.value == -0.1
