"""Moments, refit and group OBS: the algebra, against direct solutions."""

import pytest
import torch
from torch.nn import functional as F

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.prune import importances
from edgeship.toolkit.prune.importances import Evidence, Reader
from edgeship.toolkit.prune.least_squares import GROWTH, choose_ridge, columns_of, refit, solve
from edgeship.toolkit.prune.second_moments import Moments, patches, rows_at, sample_positions

C, TAPS, OUT, ROWS = 12, 4, 5, 400


@pytest.fixture
def problem():
    """Correlated inputs of 12 channels of 4 taps, the weights that read them, and their outputs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(C * TAPS, C * TAPS, generator=generator)
    x = torch.randn(ROWS, C * TAPS, generator=generator) @ mixing + 1.0
    weight = torch.randn(C * TAPS, OUT, generator=generator)
    return x, weight, x @ weight + 3.0


def moments(x, t):
    sums = Moments(x[0], t[0])
    for i in range(0, len(x), 150):
        sums.update(x[i : i + 150], t[i : i + 150])
    sums.flush()
    return sums


def evidence(x, weight, t, gain=None):
    gain = torch.ones(OUT, dtype=torch.float64) if gain is None else gain
    reader = Reader(moments(x, t).system(intercept=True), weight.double(), gain, TAPS)
    return Evidence(torch.arange(1.0, C + 1).double(), torch.arange(C, 0.0, -1).double(), (reader,))


def test_patches_are_what_the_convolution_sees():
    conv = torch.nn.Conv2d(3, 7, 3, 2, 1, bias=False)
    x = torch.randn(4, 3, 9, 9)
    sites = sample_positions(5, 5, 11, torch.Generator().manual_seed(0))
    assert len({(int(r), int(c)) for r, c in zip(sites.rows, sites.columns, strict=True)}) == 11
    rows = patches(x, conv, sites)
    torch.testing.assert_close(rows @ conv.weight.flatten(1).T, rows_at(conv(x), sites), atol=1e-5, rtol=1e-4)
    unfolded = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2)
    where = sites.rows * 5 + sites.columns
    torch.testing.assert_close(rows, unfolded[:, where].flatten(0, 1))


def test_gram_by_blocks_is_the_gram(monkeypatch, problem):
    monkeypatch.setattr("edgeship.toolkit.prune.second_moments.GRAM_COLUMNS", 10)
    x, _, t = problem
    raw = moments(x, t).system(intercept=False)
    torch.testing.assert_close(raw.gram, (x.T @ x).double() / ROWS, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(raw.cross, (x.T @ t).double() / ROWS, rtol=1e-4, atol=1e-3)


def test_a_large_mean_does_not_drown_the_variance():
    x = 1000 + torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    system = moments(x, x).system(intercept=True)
    torch.testing.assert_close(system.gram, torch.cov(x.double().T, correction=0), rtol=1e-4, atol=1e-4)


def test_everything_kept_and_the_same_inputs_change_nothing(problem):
    x, weight, t = problem
    result = refit(moments(x, t).system(intercept=True), weight.double(), torch.ones(OUT).double(), 1e-2, 0.0)
    torch.testing.assert_close(result.weight, weight.double(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(result.intercept, torch.full((OUT,), 3.0).double(), atol=0.05, rtol=0)


def test_refit_is_ridge_regression_towards_the_prior(problem):
    x, weight, t = problem
    columns = columns_of(torch.tensor([0, 3, 7]), TAPS)
    system = moments(x, t).keep(columns).system(intercept=True)
    prior, ridge = weight[columns].double(), 0.1
    got = solve(system, prior, ridge)
    xc, tc = x[:, columns].double(), t.double()
    xc, tc = xc - xc.mean(0), tc - tc.mean(0)
    amount = ridge * float((xc**2).mean())
    rows = torch.cat([xc / ROWS**0.5, amount**0.5 * torch.eye(len(columns)).double()])
    targets = torch.cat([tc / ROWS**0.5, amount**0.5 * prior])
    torch.testing.assert_close(got, torch.linalg.lstsq(rows, targets).solution, atol=1e-4, rtol=1e-3)


def test_refit_never_errs_more_than_dropping(problem):
    x, weight, t = problem
    columns = columns_of(torch.arange(6), TAPS)
    system = moments(x, t).keep(columns).system(intercept=True)
    prior = weight[columns].double()
    dropped, refitted = system.error(prior).sum(), system.error(solve(system, prior, 1e-6)).sum()
    assert refitted < 0.7 * dropped
    residual = t - t.mean(0) - (x[:, columns] - x[:, columns].mean(0)) @ prior.float()
    torch.testing.assert_close(dropped.float(), residual.square().mean(0).sum(), rtol=1e-3, atol=1e-3)


def test_the_ridge_that_generalizes_is_chosen():
    generator = torch.Generator().manual_seed(1)
    prior = torch.randn(30, 2, generator=generator)
    x = torch.randn(3000, 30, generator=generator)
    noisy = x @ prior + 5 * torch.randn(3000, 2, generator=generator)
    few, check = moments(x[:40], noisy[:40]), moments(x[1000:], (x @ prior)[1000:])
    ridge, error = choose_ridge(few, check, prior.double(), torch.ones(2).double(), intercept=True)
    assert ridge == 1e-1  # 40 noisy rows: stay near the weights that were
    system = moments(x[:40], noisy[:40]).system(intercept=True)
    held = check.system(intercept=True)
    by_hand = float(held.error(solve(system, prior.double(), ridge)).sum() / held.power.sum())
    assert error == pytest.approx(by_hand)


def test_weights_that_grow_too_much_are_held():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator)
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]  # nearly the same column
    prior = torch.full((8, 3), 0.1).double()
    t = x @ prior.float()
    t[:, 2] += 100 * (x[:, 1] - x[:, 0])  # the least-squares solution has huge weights
    gain = torch.ones(3).double()
    result = refit(moments(x, t).system(intercept=True), prior, gain, 1e-4, 0.0)
    free = solve(moments(x, t).system(intercept=True), prior, 1e-4)
    assert free.abs().amax(0)[2] > 10
    assert result.weight.abs().amax(0)[2] < 1
    torch.testing.assert_close(result.weight[:, :2], free[:, :2])
    assert bool((result.weight.abs().amax(0)[:2] < GROWTH * 0.1).all())


def test_obs_error_is_the_loss_of_the_exact_refit(problem, monkeypatch):
    """The running sum of costs equals the regularized loss after every removal."""
    x, weight, t = problem
    monkeypatch.setattr("edgeship.toolkit.prune.importances.obs.STEPS", C)
    gain = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0]).double()
    got = evidence(x, weight, t, gain)
    ranking = importances.get("obs")(got)
    system = got.readers[0].system
    amount = 1e-2 * float(system.gram.diagonal().mean())

    def loss(kept):
        gram = system.gram[kept][:, kept] + amount * torch.eye(len(kept)).double()
        pull = (system.cross + amount * weight.double())[kept]
        return -float((torch.linalg.solve(gram, pull) * pull * gain**2).sum())

    power = float((system.power * gain**2).sum())
    full = loss(torch.arange(C * TAPS))
    for gone in (1, 4, 9):
        kept = columns_of(ranking.order[gone:].sort().values, TAPS)
        assert float(ranking.error[gone]) == pytest.approx((loss(kept) - full) / power, rel=2e-3)


def test_obs_first_step_is_the_cheapest_of_all(problem):
    x, weight, t = problem
    system = evidence(x, weight, t).readers[0].system
    errors = []
    for channel in range(C):
        kept = columns_of(torch.tensor([c for c in range(C) if c != channel]), TAPS)
        part = system.take(kept)
        errors.append(float(part.error(solve(part, weight[kept].double(), 1e-6)).sum()))
    assert int(importances.get("obs")(evidence(x, weight, t)).order[0]) == errors.index(min(errors))


@pytest.mark.parametrize("name", importances.names())
def test_every_importance_drops_a_dead_channel_first(name, problem):
    x, weight, _ = problem
    x, weight = x.clone(), weight.clone()
    dead = columns_of(torch.tensor([5]), TAPS)
    x[:, dead], weight[dead] = 0.0, 0.0
    got = evidence(x, weight, x @ weight)
    norm, scale = torch.ones(C).double(), torch.ones(C).double()
    norm[5] = scale[5] = 0.0
    ranking = importances.get(name)(Evidence(norm, scale, got.readers))
    assert int(ranking.order[0]) == 5
    assert float(ranking.error[1]) == pytest.approx(0.0, abs=1e-6)
    assert sorted(ranking.order.tolist()) == list(range(C))
    assert bool((ranking.error.diff() >= -1e-4).all()) or name != "obs"


def test_scores_without_repair_err_what_is_left_out(problem):
    x, weight, t = problem
    ranking = importances.get("magnitude")(evidence(x, weight, t))
    gone = columns_of(ranking.order[:5], TAPS)
    lost = (x[:, gone] - x[:, gone].mean(0)) @ weight[gone]
    power = (t - t.mean(0)).square().mean(0).sum()
    assert float(ranking.error[5]) == pytest.approx(float(lost.square().mean(0).sum() / power), rel=1e-3)


def test_group_ranking_adds_up_its_readers_and_spares_fixed_columns(problem):
    x, weight, t = problem
    one = evidence(x, weight, t).readers[0]
    wider = torch.cat([x, torch.randn(ROWS, 6)], 1)  # columns that are read but not in the group
    extra = torch.cat([weight, torch.randn(6, OUT)])
    system = moments(wider, wider @ extra).system(intercept=True)
    two = Reader(system, extra.double(), one.gain, TAPS)
    both = Evidence(torch.ones(C).double(), torch.ones(C).double(), (one, two))
    for name in importances.names():
        ranking = importances.get(name)(both)
        assert sorted(ranking.order.tolist()) == list(range(C))


def test_an_unknown_importance_is_hinted():
    with pytest.raises(RecipeError) as caught:
        importances.get("magnitud")
    assert "magnitude" in caught.value.hint
