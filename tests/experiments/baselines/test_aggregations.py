"""Every aggregation against its paper's formula, written out by hand in float64 for small matrices."""

import itertools

import pytest
import torch
from points import matrix, update_of
from torch import Tensor

from experiments.baselines import aligned_mtl, cagrad, fairgrad, graddrop, imtl_g, mgda, nash_mtl, pcgrad, upgrad
from experiments.baselines.balancing import drawing
from experiments.baselines.fair_weights import fair_weights

CONFLICT = matrix([1.0, 2.0, 0.0], [1.0, -1.0, 0.5])
HARMONY = matrix([1.0, 2.0, 0.0], [1.0, 1.0, 0.5])
THREE = matrix([1.0, 2.0, 0.0, 1.0], [1.0, -1.0, 0.5, 0.0], [-2.0, 0.5, 1.0, 3.0])
EVERY = (aligned_mtl, cagrad, fairgrad, imtl_g, mgda, nash_mtl, upgrad)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("jacobian", [CONFLICT, HARMONY])
def test_pcgrad_of_two_tasks_is_its_formula(jacobian: Tensor):
    a, b = jacobian
    expected = a - min(a @ b, torch.tensor(0.0)) / (b @ b) * b + b - min(a @ b, torch.tensor(0.0)) / (a @ a) * a
    close(update_of(pcgrad(), jacobian), expected)


def test_pcgrad_of_three_tasks_is_its_formula_in_some_order_and_all_orders_come():
    def projected(i: int, order: tuple[int, int]) -> Tensor:
        g = THREE[i].clone()
        for j in order:
            if g @ THREE[j] < 0:
                g = g - g @ THREE[j] / (THREE[j] @ THREE[j]) * THREE[j]
        return g

    orders = [list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]
    expected = torch.stack(
        [sum(projected(i, o) for i, o in enumerate(chosen)) for chosen in itertools.product(*orders)]
    )
    updates = torch.stack([update_of(pcgrad(seed), THREE) for seed in range(30)])
    equal = (updates[:, None] - expected).norm(dim=2) < 1e-12
    assert equal.any(dim=1).all()  # each update comes of some order
    assert equal.any(dim=0).all()  # and each order is met


@pytest.mark.parametrize("c", [0.0, 0.4, 0.8])
def test_cagrad_is_the_best_worst_case_within_its_ball(c: float):
    a, b = CONFLICT
    mean = (a + b) / 2
    shares = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    inner = shares * a + (1 - shares) * b
    lengths = inner.norm(dim=1)
    dual = inner @ mean + c * mean.norm() * lengths
    best = int(dual.argmin())
    close(update_of(cagrad(c), CONFLICT), mean + c * mean.norm() * inner[best] / lengths[best], 1e-4)


@pytest.mark.parametrize("jacobian", [CONFLICT, HARMONY, matrix([1.0, 0.1], [3.0, 0.5])])
def test_mgda_of_two_tasks_is_the_shortest_convex_combination(jacobian: Tensor):
    a, b = jacobian
    share = ((b - a) @ b / (b - a).square().sum()).clamp(0, 1)
    close(update_of(mgda(), jacobian), share * a + (1 - share) * b)


def test_imtl_g_projects_equally_onto_all():
    u = matrix([0.6, 0.8], [0.8, -0.6])
    close(update_of(imtl_g(), torch.stack([u[0], 2 * u[1]])), 2 / 3 * u[0] + 1 / 3 * 2 * u[1])
    shares = THREE @ update_of(imtl_g(), THREE) / THREE.norm(dim=1)
    close(shares, shares.mean().expand(3))


def test_nash_mtl_of_two_tasks_is_the_closed_form():
    a, b = CONFLICT
    cosine = a @ b / (a.norm() * b.norm())
    close(update_of(nash_mtl(), CONFLICT), (a / a.norm() + b / b.norm()) / (1 + cosine).sqrt(), 1e-5)


def test_fairgrad_of_orthogonal_gradients_is_the_closed_form():
    a, b = matrix([0.6, 0.8], [0.8, -0.6]) * torch.tensor([[3.0], [0.5]])  # |g|^2 w = w^(-1/2): w = |g|^(-4/3)
    close(update_of(fairgrad(alpha=2.0), torch.stack([a, b])), 3.0 ** (-4 / 3) * a + 0.5 ** (-4 / 3) * b, 1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fair_weights_solve_their_condition(alpha: float):
    generator = torch.Generator().manual_seed(0)
    for tasks in (1, 2, 4, 11):
        for _ in range(5):
            jacobian = torch.randn(tasks, 60, dtype=torch.float64, generator=generator)
            jacobian = jacobian * 10 ** (2 * torch.rand(tasks, 1, dtype=torch.float64, generator=generator) - 1)
            weights = fair_weights(jacobian @ jacobian.T, alpha=alpha)
            assert weights.min().item() > 0
            close(jacobian @ jacobian.T @ weights * weights ** (1 / alpha), torch.ones_like(weights), 1e-4)


def test_fair_weights_are_finite_where_gradients_cancel_and_agree_with_torchjd_elsewhere():
    from torchjd.aggregation import FairGradWeighting

    opposed = matrix([1.0, 0.0], [-3.0, 0.0], [0.0, 2.0])
    assert fair_weights(opposed @ opposed.T, alpha=1.0).isfinite().all()
    products = THREE @ THREE.T
    for alpha in (1.0, 2.0):
        close(fair_weights(products, alpha=alpha), FairGradWeighting(alpha)(products), 1e-4)
    with pytest.raises(ValueError, match=r"alpha=0\.0: give a number above 0"):
        fair_weights(products, alpha=0.0)


def test_aligned_mtl_makes_all_principal_components_as_long_as_the_shortest():
    u, s, v = torch.linalg.svd(THREE, full_matrices=False)
    close(update_of(aligned_mtl(), THREE), s.min() * (u @ v).mean(dim=0))


@pytest.mark.parametrize("jacobian", [CONFLICT, HARMONY, THREE, THREE * torch.tensor([[1.0], [1.0], [100.0]])])
def test_upgrad_projects_each_gradient_onto_the_cone_that_harms_none(jacobian: Tensor):
    def projection(i: int) -> Tensor:
        """Of all choices of active constraints, the feasible point that is nearest."""
        points = []
        for size in range(len(jacobian) + 1):
            for active in itertools.combinations(range(len(jacobian)), size):
                g = jacobian[i].clone()
                if active:
                    rows = jacobian[list(active)]
                    g = g - rows.T @ torch.linalg.lstsq(rows.T, g[:, None]).solution[:, 0]
                if (jacobian @ g).min().item() > -1e-9:
                    points.append(g)
        return min(points, key=lambda point: (point - jacobian[i]).norm().item())

    expected = torch.stack([projection(i) for i in range(len(jacobian))]).mean(dim=0)
    close(update_of(upgrad(), jacobian), expected, 1e-6)


def test_graddrop_keeps_one_sign_per_element():
    jacobian = torch.randn(3, 40, dtype=torch.float64)
    balancing = graddrop(seed=5)
    update = update_of(balancing, jacobian)
    with drawing(5, 0, torch.device("cpu")):
        u = torch.cat([torch.rand(1, dtype=torch.float64), torch.rand(39, dtype=torch.float64)])
    purity = 0.5 * (1 + jacobian.sum(0) / jacobian.abs().sum(0))
    positive = u < purity
    close(update, torch.where(positive, jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)))
    assert positive.any()
    assert not positive.all()


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_fixed_threshold_decides_what_small_gradients_get(make, scale: float):
    plain, scaled = update_of(make(), CONFLICT), update_of(make(), scale * CONFLICT)
    close(scaled / scaled.norm(), plain / plain.norm(), 1e-6)


@pytest.mark.parametrize("make", [*EVERY, pcgrad, graddrop], ids=lambda make: make.__name__)
def test_a_task_without_gradient_has_no_say(make):
    with_nothing = torch.cat([CONFLICT, torch.zeros(1, 3)])
    close(update_of(make(), with_nothing), update_of(make(), CONFLICT))
    close(update_of(make(), 0 * CONFLICT), torch.zeros(3, dtype=torch.float64))
