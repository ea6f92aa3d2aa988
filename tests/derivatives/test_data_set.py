"""Curvature over the batches of a data set: equal to that of one batch with all examples, one pass for each product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from networks import CLASSES, direction, flat, network, problem

import funcconv as fc
from funcconv._derivatives.data_set import data_set

pytestmark = pytest.mark.once

GRAPH = network()
_, _, PARAMS = problem()
KEY = jax.random.key(0)
EXAMPLES, SIZES = 11, (4, 4, 3)
RNG = np.random.default_rng(1)
DATA = {"images": RNG.normal(size=(EXAMPLES, 6, 6, 1)), "labels": RNG.integers(0, CLASSES, EXAMPLES)}
STARTS = np.cumsum((0, *SIZES[:-1]))
BATCHES = [
    {name: array[start : start + size] for name, array in DATA.items()}
    for start, size in zip(STARTS, SIZES, strict=True)
]


def model(params, batch):
    return GRAPH(params, batch["images"])


def loss(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["labels"][:, None], 1).mean()


def f(params, batch):
    return loss(model(params, batch), batch)


def losses(params, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(model(params, batch)), batch["labels"][:, None], 1)[:, 0]


# name: (with batches, the same with all examples in one batch)
OPERATORS = {
    "hessian": (
        lambda data, **options: fc.hessian(f, PARAMS, batches=data, **options),
        lambda: fc.hessian(lambda params: f(params, DATA), PARAMS),
    ),
    "gauss_newton": (
        lambda data, **options: fc.gauss_newton(model, loss, PARAMS, batches=data, **options),
        lambda: fc.gauss_newton(lambda params: model(params, DATA), lambda z: loss(z, DATA), PARAMS),
    ),
    **{
        likelihood: (
            lambda data, likelihood=likelihood, **options: fc.fisher(
                losses if likelihood == "empirical" else model, PARAMS, likelihood, batches=data, **options
            ),
            lambda likelihood=likelihood: fc.fisher(
                lambda params: (losses if likelihood == "empirical" else model)(params, DATA), PARAMS, likelihood
            ),
        )
        for likelihood in ("categorical", "bernoulli", "gaussian", "empirical")
    },
}


class Counted:
    """Batches that count how often they are read."""

    def __init__(self, batches=BATCHES):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


HESSIAN = fc.hessian(f, PARAMS, batches=BATCHES)


@pytest.fixture(scope="module")
def whole():
    """The operator of one batch with all examples."""
    return OPERATORS["hessian"][1]()


@pytest.fixture(scope="module")
def fisher():
    """The Fisher matrix over the batches."""
    return OPERATORS["categorical"][0](BATCHES)


# products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_is_that_of_all_examples(name):
    over_batches, of_one_batch = OPERATORS[name]
    operator, one = over_batches(BATCHES), of_one_batch()
    assert (operator.name, operator.shape, operator.semidefinite) == (one.name, one.shape, one.semidefinite)
    matrix = np.asarray(one.dense())
    close(operator.dense(chunk=20), matrix)
    v = direction(PARAMS)
    close(flat(operator.mv(v)), matrix @ flat(v))
    assert jax.tree.map(jnp.shape, operator.mv(v)) == jax.tree.map(jnp.shape, PARAMS)


def test_each_method_makes_as_few_passes_as_it_can(whole):
    data = Counted()
    operator = fc.hessian(f, PARAMS, batches=data)
    assert data.passes == 0

    def passes(method):
        before = data.passes
        method()
        return data.passes - before

    vs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(direction(PARAMS, seed) for seed in range(5)))
    assert passes(lambda: operator.mv(PARAMS)) == 1
    assert passes(lambda: operator.mm(vs)) == 1
    assert passes(lambda: operator.trace(chunk=47)) == 1
    assert passes(lambda: operator.diag(chunk=20)) == 3
    assert passes(lambda: operator.trace("hutchinson", key=KEY, samples=10, chunk=5)) == 2
    assert passes(lambda: operator.density(KEY, order=6, samples=4)) == 6
    assert passes(lambda: operator.shifted(9.0).log_det(KEY, order=5, samples=4)) == 5
    assert passes(lambda: operator.to_scipy() @ np.ones((47, 3))) == 1
    products = operator.mm(vs)
    for i in range(5):
        close(
            flat(jax.tree.map(lambda leaf, i=i: leaf[i], products)),
            flat(whole.mv(jax.tree.map(lambda leaf, i=i: leaf[i], vs))),
        )


def test_the_result_is_the_same_in_each_run():
    v = direction(PARAMS)
    first, second = (fc.hessian(f, PARAMS, batches=BATCHES).mv(v) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_programs_are_compiled_for_shapes_of_batches_alone(compilations):
    """A spectrum along training costs its products: another point or data set with the same shapes compiles nothing."""
    traces = []

    def counted(params, batch):
        traces.append(len(batch["labels"]))
        return f(params, batch)

    fc.hessian(counted, PARAMS, batches=BATCHES).eigsh(1, tol=0.1)
    assert sorted(traces) == [3, 4]  # one shape for the full batches, and one for the last
    points = [jax.tree.map(lambda p, step=step: p * (1 + step / 10), PARAMS) for step in range(3)]
    compilations.clear()
    for params in points:
        fc.hessian(counted, params, batches=Counted(BATCHES[::-1])).eigsh(1, tol=0.1)
    assert not compilations
    assert len(traces) == 2


def test_sums_of_16_bit_numbers_are_wide():
    """A thousand ones are no sum of bfloat16."""
    x = jnp.ones(2, jnp.bfloat16)
    batches = [np.ones((1, 1), np.float32)] * 1000
    operator = fc.hessian(lambda x, b: (b * (x**2).sum().astype(jnp.float32)).mean(), x, batches=batches)
    product = operator.mv(x)
    assert product.dtype == jnp.bfloat16
    assert product.tolist() == [2, 2]


# other methods ---------------------------------------------------------------------------------------------


def test_diagonal_trace_and_blocks(whole):
    matrix = np.asarray(whole.dense())
    close(flat(HESSIAN.diag(chunk=10)), matrix.diagonal())
    close(HESSIAN.trace(chunk=100), matrix.trace())
    close(HESSIAN.block("dense1").dense(), matrix[:27, :27])
    close(HESSIAN.block("trunk", "dense1/bias").dense(), matrix[27:, :3])
    close(HESSIAN.shifted(0.5).block("dense1/bias").dense(), matrix[:3, :3] + np.eye(3) / 2)


@pytest.mark.parametrize(("samples", "chunk"), [(4, 2), (5, 2)])
def test_estimates_use_the_same_signs(whole, samples, chunk):
    for method in ("trace", "diag"):
        options = {"key": KEY, "samples": samples, "chunk": chunk}
        estimates = (getattr(operator, method)("hutchinson", **options) for operator in (HESSIAN, whole))
        for actual, expected in zip(*estimates, strict=True):
            close(flat(actual), flat(expected))


def test_eigenvalues_and_their_residuals(whole):
    values, vectors, residuals = HESSIAN.eigsh(3, residuals=True)
    matrix = np.asarray(whole.dense())
    close(values, np.linalg.eigvalsh(matrix)[-3:], terms=47, steps=20)
    rows = np.stack([flat(jax.tree.map(lambda leaf, i=i: leaf[i], vectors)) for i in range(3)])
    close(residuals, np.linalg.norm(rows @ matrix - values[:, None] * rows, axis=1))


def test_the_density_is_that_of_all_examples(whole):
    """All Krylov spaces grow together here, and one after another there."""
    actual, expected = (operator.density(KEY, order=20, samples=3, smoothing=0.05) for operator in (HESSIAN, whole))
    for one, other in zip(actual, expected, strict=True):
        close(one, other, terms=47, steps=20 * 20)  # the nodes move by rounding, and the peaks are a 20th as wide


def test_an_exhausted_krylov_space_of_batches():
    batches = [np.ones(2), np.full(1, 4.0)]  # the mean is 2, and the eigenvalues are 0, 2 and 6
    scales = jnp.array([0.0, 1, 1, 3, 3, 3])
    operator = fc.hessian(lambda x, b: b.mean() * (scales * x**2).sum() / 2, jnp.ones(6), batches=batches)
    whole = fc.hessian(lambda x: (scales * x**2).sum(), jnp.ones(6))
    for one, other in zip(operator.density(KEY, samples=2), whole.density(KEY, samples=2), strict=True):
        close(one, other, terms=100, steps=100)
    close(operator.shifted(1.0).log_det(KEY, samples=2).value, 2 * np.log(3) + 3 * np.log(7))
    zero = fc.hessian(lambda x, b: b.mean() * x.sum(), jnp.ones(3), batches=batches)
    assert np.isfinite(np.stack(zero.density(KEY))).all()


def test_functions_of_the_matrix(fisher):
    one = OPERATORS["categorical"][1]()
    v = direction(PARAMS)
    for method in (
        partial(fc.Operator.inv_sqrt_mv, v=v, damping=0.5, order=30),
        partial(fc.Operator.exp_mv, v=v, t=-0.3, order=30),
    ):
        close(flat(method(fisher)), flat(method(one)), steps=10)
    actual, expected = (operator.log_det(KEY, damping=0.5, samples=3) for operator in (fisher, one))
    close(actual.value, expected.value, steps=10)
    close(actual.error, expected.error, steps=10)


def test_deflation(fisher):
    values, vectors = fisher.eigsh(3)
    deflated = fisher.deflated(vectors)
    matrix = np.asarray(fisher.dense())
    rows = np.stack([flat(jax.tree.map(lambda leaf, i=i: leaf[i], vectors)) for i in range(3)])
    close(deflated.dense(), matrix - rows.T * np.asarray(values) @ rows, terms=47, steps=20)


# the mean --------------------------------------------------------------------------------------------------


def test_weights_of_batches():
    """The mean over the entries of masks, one of which is empty."""
    masks = [np.array(mask, float) for mask in ([1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0])]
    batches = [batch | {"mask": mask} for batch, mask in zip(BATCHES, masks, strict=True)]

    def masked(params, batch):
        return (losses(params, batch) * batch["mask"]).sum() / batch["mask"].sum()  # 0 / 0 for the empty one

    operator = fc.hessian(masked, PARAMS, batches=batches, weight=lambda batch: batch["mask"].sum())
    chosen = np.concatenate(masks) > 0
    some = {name: array[chosen] for name, array in DATA.items()}
    close(operator.dense(), fc.hessian(lambda params: f(params, some), PARAMS).dense())


def test_a_fisher_matrix_of_positions_is_the_mean_over_all_positions():
    """Images of different sizes, with outputs at each pixel: the weight is the number of pixels."""
    batches = [RNG.normal(size=shape) for shape in ((2, 3, 3, 2), (1, 5, 4, 2))]
    operator = fc.fisher(lambda w, x: x @ w, jnp.ones((2, 1)), "gaussian", batches=batches)
    rows = np.concatenate([batch.reshape(-1, 2) for batch in batches])
    close(operator.dense(), rows.T @ rows / len(rows))


@pytest.mark.parametrize(
    "source",
    [
        tuple(BATCHES),
        lambda: iter(BATCHES),
        lambda: (batch for batch in BATCHES),
        Counted(),
        fc.train.batches(DATA, 4, drop_last=False),
        [jax.tree.map(jnp.asarray, batch) for batch in BATCHES],
    ],
    ids=["tuple", "function", "generators", "loader", "train.batches", "arrays of JAX"],
)
def test_sources(whole, source):
    operator = fc.hessian(f, PARAMS, batches=source)
    for _ in range(2):
        jax.tree.map(close, operator.mv(PARAMS), whole.mv(PARAMS))


def test_a_loader_may_use_its_memory_again(whole):
    def reused():
        memory = {name: np.zeros((4, *array.shape[1:]), array.dtype) for name, array in DATA.items()}
        for batch in BATCHES:
            size = len(batch["labels"])
            for name, array in batch.items():
                memory[name][:size] = array
            yield {name: array[:size] for name, array in memory.items()}
            for array in memory.values():
                array[:] = 0

    jax.tree.map(close, fc.hessian(f, PARAMS, batches=reused).mv(PARAMS), whole.mv(PARAMS))


def test_an_operator_with_batches_is_a_pytree():
    assert not jax.tree.leaves(HESSIAN)
    jax.tree.map(close, jax.tree.map(jnp.negative, HESSIAN).mv(PARAMS), HESSIAN.mv(PARAMS))


# progress --------------------------------------------------------------------------------------------------


def test_a_slow_pass_shows_a_progress_bar(monkeypatch, capsys):
    HESSIAN.mv(PARAMS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(data_set, "_SECONDS", -1)
    fc.hessian(f, PARAMS, batches=BATCHES).mv(PARAMS)
    assert "hessian, pass 1" in capsys.readouterr().err
    fc.hessian(f, PARAMS, batches=BATCHES, progress=False).mv(PARAMS)
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    fc.hessian(f, PARAMS, batches=BATCHES).mv(PARAMS)
    assert capsys.readouterr().err == ""


# misuse ----------------------------------------------------------------------------------------------------


def product(batches, **options):
    """Multiply twice, so that the data are read twice."""
    operator = fc.hessian(f, PARAMS, batches=batches, **options)
    operator.mv(PARAMS)
    operator.mv(PARAMS)


def partly_read():
    """Return a function that begins a list anew, and another one whose second pass is shorter."""
    lengths = iter([3, 2])
    return lambda: iter(BATCHES[: next(lengths)])


SQUARE = lambda x, batch: (batch * x**2).mean()  # noqa: E731
IN_JIT = ["hessian: with batches=, a product reads the data in Python", "inside jax.jit"]
CASES = {
    "exhausted": (lambda: product(iter(BATCHES)), ["pass 2 has no batches, but the first one had 3", "read only once"]),
    "empty": (lambda: product([]), ["hessian: there are no batches in the list", "Pass a list"]),
    "shorter": (lambda: product(partly_read()), ["pass 2 read 2 batches of weight 8", "read 3 with 11"]),
    "dict": (lambda: product(DATA), ["batches must be an iterable", "got a dict. Pass [batch]"]),
    "array": (lambda: product(np.ones(3)), ["batches must be an iterable", "got a ndarray"]),
    "number": (lambda: product(3), ["batches must be an iterable", "got a int"]),
    "no iterator": (lambda: product(lambda: 3), ["batches() must return an iterator; got a int"]),
    "structure": (
        lambda: product([BATCHES[0], BATCHES[1] | {"more": np.ones(4)}]),
        ["hessian: batch 2 has the structure", "'more'", "All batches must have the same"],
    ),
    "text": (lambda: product([BATCHES[0] | {"name": "x"}]), ["batch 1 has a value of type str at 'name'"]),
    "no examples": (
        lambda: fc.hessian(SQUARE, 1.0, batches=[np.float32(1)]).mv(jnp.asarray(1.0)),
        ["the arrays of a batch must share one leading axis"],
    ),
    "negative": (lambda: product(BATCHES, weight=lambda _: -1), ["the weight of batch 1 is -1.0"]),
    "not finite": (lambda: product(BATCHES, weight=lambda _: jnp.nan), ["the weight of batch 1 is nan"]),
    "all zero": (lambda: product(BATCHES, weight=lambda _: 0), ["the weights of all 3 batches are 0"]),
    "weights": (lambda: product(BATCHES, weight=lambda b: b["labels"]), ["one real number; got int64[4]"]),
    "weight of a word": (lambda: product(BATCHES, weight=lambda _: "much"), ["got a value of type str"]),
    "weight alone": (lambda: fc.hessian(jnp.sum, 1.0, weight=len), ["hessian: weight= is", "Pass batches="]),
    "not hashable": (
        lambda: fc.hessian(type("F", (), {"__hash__": None})(), 1.0, batches=BATCHES),
        ["functions must be hashable", "got a F"],
    ),
    "likelihood": (lambda: fc.fisher(model, PARAMS, "normal", batches=BATCHES), ["fisher: unknown likelihood"]),
    "no scalar": (lambda: fc.hessian(model, PARAMS, batches=BATCHES).mv(PARAMS), ["f must give one floating number"]),
    "in jit": (lambda: jax.jit(HESSIAN.mv)(PARAMS), IN_JIT),
    "constants in jit": (lambda: jax.jit(lambda: HESSIAN.mv(PARAMS))(), IN_JIT),
    "argument of jit": (lambda: jax.jit(lambda h: h.trace())(HESSIAN), IN_JIT),
    "made in jit": (lambda: jax.jit(lambda p: fc.hessian(f, p, batches=BATCHES).trace())(PARAMS), IN_JIT),
    "in vmap": (lambda: jax.vmap(HESSIAN.mv)(jax.tree.map(lambda p: p[None], PARAMS)), IN_JIT),
    "density in jit": (lambda: jax.jit(HESSIAN.density)(KEY), IN_JIT),
    "lineax": (lambda: HESSIAN.to_lineax(), IN_JIT),
}


@pytest.mark.parametrize("name", CASES)
def test_messages(name):
    function, parts = CASES[name]
    with pytest.raises(fc.FuncconvError) as caught:
        function()
    text = str(caught.value)
    begin = 0
    for part in parts:
        assert part in text[begin:], text
        begin = text.index(part, begin) + len(part)
