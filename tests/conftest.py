"""The climate of the tests: float64 at hand, nothing promoted or spread in silence, compilations shared."""

import gc
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import numpy as np
import pytest
from available import computes_float16

from funcconv._primitives.forms import choice as _choice

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the suite's time is LLVM's; JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs it on code as fast as users have it.
FEW_OPTIMIZATIONS = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"
jax.config.update("jax_disable_most_optimizations", FEW_OPTIMIZATIONS)
# Small arrays are left to XLA; FORMS_AT_ANY_SIZE=1 runs the suite with the forms that large ones are computed in.
if os.environ.get("FORMS_AT_ANY_SIZE", "0") != "0":
    _choice._FEW_PRODUCTS = 0
hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes is no result
hypothesis.settings.load_profile("any machine")
gc.set_threshold(100_000, 20, 100)  # tracing makes objects by the thousand, few of them garbage
CACHE = Path(__file__).parents[1] / ".pytest_cache" / f"jax-{jax.__version__}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back():
    """Forget the programs of one file before the next: kept, they are gigabytes, and slow every collection."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rest_of_a_failed_read():
    """Collect the event loops that orbax leaves to the garbage collector where a read or a write fails."""
    yield
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a test if XLA cannot compile its float16 program for this processor."""
    del item
    try:
        return (yield)
    except Exception as error:  # also one that says in which node of a graph it was
        if "Failed to materialize symbols" in str(error) and not computes_float16():
            pytest.skip("this XLA cannot compile float16 for this processor: use one with F16C (2012 and later)")
        raise


@pytest.fixture
def rng(request):
    """Random numbers that differ from test to test, and not from run to run."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def climate_of_a_user():
    """JAX as it comes."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture
def as_users_compile():
    """With all of XLA's optimizations."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", FEW_OPTIMIZATIONS)


@pytest.fixture
def compilations():
    """The names of the compilations that are made from here on."""
    found = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found
