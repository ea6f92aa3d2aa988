"""The node tests of the ONNX project, for the operators of convolutional networks."""

import functools
import warnings
from collections import defaultdict
from itertools import islice

import jax
import numpy as np
import pytest
from available import needed
from compare import close
from onnx_nodes import OPERATORS, CannotExpress

pytestmark = pytest.mark.once

# Operators of convolutional networks that have no counterpart.
ABSENT = {
    "GridSample": "no op reads an image at coordinates that are an array",
    "DeformConv": "no op reads an image at coordinates that are an array",
    "AffineGrid": "no op computes coordinates",
}
# The expected output of this test has four digits. Its tolerance is that of ONNX.
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-3}
WITHOUT_MEANING = {"seed", "stash_type"}  # attributes: of a random generator, and of the dtype of a sum


@functools.cache
def node_tests():
    """Return the node tests of each operator. Models of several nodes are other forms of those of one node."""
    onnx = needed("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of functions that make the data of other operators
        from onnx.backend.test.loader import load_model_tests

        tests = defaultdict(list)
        for test in load_model_tests(kind="node"):
            nodes = test.model.graph.node
            if len(nodes) == 1 and nodes[0].op_type in OPERATORS.keys() | ABSENT.keys():
                attributes = {item.name: onnx.helper.get_attribute_value(item) for item in nodes[0].attribute}
                texts = {
                    name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()
                }
                tests[nodes[0].op_type].append((test.name, nodes[0], texts, *test.data_sets[0]))
    return tests


def outputs_of(node, attributes, inputs, count):
    """Return the first outputs of a node, by one program of funcconv."""
    options = {name: value for name, value in attributes.items() if name not in WITHOUT_MEANING}
    x, *others = inputs

    def evaluate(x):
        values = iter([x, *others])
        outputs = OPERATORS[node.op_type](*[next(values) if name else None for name in node.input], **options)
        return tuple(islice((outputs,) if hasattr(outputs, "shape") else outputs, count))

    return jax.jit(evaluate)(x)


@functools.cache
def missing(operator):
    """Compare all node tests of an operator that can be expressed. Return the others, with the reasons."""
    reasons = {}
    for name, node, attributes, inputs, expected in node_tests()[operator]:
        try:
            outputs = outputs_of(node, attributes, inputs, len(expected))
        except CannotExpress as error:
            reasons[name] = str(error)
            continue
        assert len(outputs) == len(expected) or operator == "LayerNormalization", name  # there only the first
        for output, actual in zip(expected, outputs, strict=False):
            if name in ROUNDED:
                np.testing.assert_allclose(actual, output, rtol=ROUNDED[name])
            elif np.issubdtype(output.dtype, np.floating):
                assert actual.dtype == output.dtype, name
                close(actual, output, terms=128)
            else:
                np.testing.assert_array_equal(actual, output)
    return reasons


@pytest.mark.parametrize("operator", OPERATORS)
def test_nodes_compute_the_same(operator):
    if not node_tests()[operator]:
        pytest.skip(f"this version of onnx has no tests of {operator}")
    missing(operator)


def test_how_many_nodes_are_expressed():
    """Of 254 with onnx 1.23. The rest are listed here."""
    reasons = {name: reason for operator in OPERATORS for name, reason in missing(operator).items()}
    assert set(reasons) == {
        "test_training_dropout",
        "test_training_dropout_default",
        "test_training_dropout_default_mask",
        "test_training_dropout_mask",
    }
    absent = sum(len(node_tests()[operator]) for operator in ABSENT)
    total = sum(map(len, node_tests().values()))
    assert total - absent - len(reasons) >= 224
