"""Bad input: the type of error that torch.nn raises, a message with wanted and got, and no kernel run."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_rnn

I, H = 3, 4


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


# name: the module, its arguments, what the message says
SAME_AS_TORCH = {
    "rank 1": ("LSTM", (zeros(3),), "Expected input to be 2D or 3D, got 1D"),
    "rank 4": ("GRU", (zeros(1, 2, 3, 3),), "Expected input to be 2D or 3D, got 4D"),
    "feature size": ("LSTM", (zeros(5, 2, 7),), "Expected 3, got 7"),
    "feature size of a GRU": ("GRU", (zeros(5, 2, 7),), "Expected 3, got 7"),
    "feature size without a batch": ("GRU", (zeros(5, 7),), "Expected 3, got 7"),
    "input dtype": ("LSTM", (zeros(5, 2, 3, dtype=torch.float64),), "torch.float64"),
    "integer input": ("GRU", (zeros(5, 2, 3, dtype=torch.int64),), "torch.int64"),
    "no steps": ("LSTM", (zeros(0, 2, 3),), "Expected sequence length to be larger than 0"),
    "no steps of a GRU": ("GRU", (zeros(0, 2, 3),), "Expected sequence length to be larger than 0"),
    "batch of h": ("LSTM", (zeros(5, 2, 3), (zeros(1, 3, 4), zeros(1, 2, 4))), r"\(1, 2, 4\), got \[1, 3, 4\]"),
    "size of c": ("LSTM", (zeros(5, 2, 3), (zeros(1, 2, 4), zeros(1, 2, 5))), r"\(1, 2, 4\), got \[1, 2, 5\]"),
    "layers of h": ("GRU", (zeros(5, 2, 3), zeros(2, 2, 4)), r"\(1, 2, 4\), got \[2, 2, 4\]"),
    "rank of h": ("GRU", (zeros(5, 2, 3), zeros(2, 4)), "hx should also be 3-D but got"),
    "rank of h and c": ("LSTM", (zeros(5, 2, 3), (zeros(2, 4), zeros(2, 4))), "also be 3-D but got"),
    "rank of h without a batch": ("GRU", (zeros(5, 3), zeros(1, 1, 4)), "hx should also be 2-D but got"),
    "tuple for a GRU": ("GRU", (zeros(5, 2, 3), (zeros(1, 2, 4), zeros(1, 2, 4))), "tuple"),
    "packed feature size": ("GRU", (pack_sequence([zeros(4, 7)]),), "Expected 3, got 7"),
    "rank of a cell's input": ("LSTMCell", (zeros(2, 2, 3),), "1D or 2D, got 3D"),
    "feature size of a cell": ("LSTMCell", (zeros(2, 7),), "input has inconsistent input_size: got 7 expected 3"),
    "feature size of a GRU cell": ("GRUCell", (zeros(2, 7),), "input has inconsistent input_size: got 7 expected 3"),
    "rank of a cell's hx": ("GRUCell", (zeros(2, 3), zeros(1, 2, 4)), "1D or 2D, got 3D"),
    "batch of a cell's hx": ("GRUCell", (zeros(2, 3), zeros(3, 4)), "batch size 2 doesn't match hidden0 batch size 3"),
    "size of a cell's hx": ("GRUCell", (zeros(2, 3), zeros(2, 9)), "hidden_size: got 9, expected 4"),
    "size of a cell's c": ("LSTMCell", (zeros(2, 3), (zeros(2, 4), zeros(2, 9))), "hidden_size: got 9, expected 4"),
    "one tensor for an LSTMCell's hx": ("LSTMCell", (zeros(2, 3), zeros(2, 2, 4)), "two tensors"),
    "dtype of a cell's input": ("GRUCell", (zeros(2, 3, dtype=torch.float64),), None),
    "dtype of a cell's hx": ("GRUCell", (zeros(2, 3), zeros(2, 4, dtype=torch.float64)), None),
}


@pytest.mark.parametrize("case", SAME_AS_TORCH)
def test_same_type_as_torch(case):
    kind, arguments, message = SAME_AS_TORCH[case]
    with pytest.raises(Exception) as theirs:
        getattr(nn, kind)(I, H)(*arguments)
    with pytest.raises(theirs.type, match=message):
        getattr(fused_rnn, kind)(I, H)(*arguments)


WORSE_IN_TORCH = {
    # Where torch.nn says nothing, or what a matmul deep inside says.
    "hx of a tensor": (
        "LSTM",
        (zeros(5, 2, 3), zeros(1, 2, 4)),
        TypeError,
        r"hx of LSTM must be two tensors \(h_0, c_0\), got a Tensor",
    ),
    "hx of three": ("LSTM", (zeros(5, 2, 3), (zeros(1, 2, 4),) * 3), TypeError, "two tensors .*, got 3 of them"),
    "dtype of hx": (
        "LSTM",
        (zeros(5, 2, 3), (zeros(1, 2, 4, dtype=torch.float64),) * 2),
        RuntimeError,
        "hx must be torch.float32 on cpu like input, got torch.float64 on cpu",
    ),
    "dtype of hx of a GRU": (
        "GRU",
        (zeros(5, 2, 3), zeros(1, 2, 4, dtype=torch.float16)),
        RuntimeError,
        "hx must be torch.float32 on cpu like input, got torch.float16 on cpu",
    ),
    "device of hx": (
        "GRU",
        (zeros(5, 2, 3), zeros(1, 2, 4, device="meta")),
        RuntimeError,
        "hx must be torch.float32 on cpu like input, got torch.float32 on meta",
    ),
    "device of input": (
        "LSTM",
        (zeros(5, 2, 3, device="meta"),),
        RuntimeError,
        "weight_ih_l0 must be torch.float32 on meta like input, got torch.float32 on cpu",
    ),
    "device of a cell's input": (
        "GRUCell",
        (zeros(2, 3, device="meta"),),
        RuntimeError,
        "weight_ih.* must be torch.float32 on meta like input",
    ),
    "batch of a cell's c alone": (  # nn.LSTMCell ends the process
        "LSTMCell",
        (zeros(2, 3), (zeros(2, 4), zeros(4))),
        RuntimeError,
        "For batched 2-D input, hx should also be 2-D but got 1-D",
    ),
    "batch of a cell's hx alone": (
        "GRUCell",
        (zeros(3), zeros(1, 4)),
        RuntimeError,
        "For unbatched 1-D input, hx should also be 1-D but got 2-D",
    ),
    "packed feature size": ("LSTM", (pack_sequence([zeros(4, 7)]),), RuntimeError, "Expected 3, got 7"),
    "packed dtype": (
        "LSTM",
        (pack_sequence([zeros(4, 3, dtype=torch.float64)]),),
        ValueError,
        "torch.float64",
    ),
    "batch of packed hx": (
        "LSTM",
        (pack_sequence([zeros(4, 3), zeros(2, 3)]), (zeros(1, 3, 4),) * 2),
        RuntimeError,
        r"\(1, 2, 4\), got \[1, 3, 4\]",
    ),
}


@pytest.mark.parametrize("case", WORSE_IN_TORCH)
def test_clearer_than_torch(case):
    kind, arguments, error, message = WORSE_IN_TORCH[case]
    with pytest.raises(error, match=message):
        getattr(fused_rnn, kind)(I, H)(*arguments)


LENGTHS = {
    "too long": ([1, 6], RuntimeError, "lengths must be from 0 to 5, got 6"),
    "negative": (torch.tensor([-3, 5]), RuntimeError, "lengths must be from 0 to 5, got -3"),
    "too many": ([1, 2, 3], RuntimeError, r"lengths must be \[2\], one a row, got \[3\]"),
    "a column": (torch.tensor([[1], [2]]), RuntimeError, r"lengths must be \[2\], one a row, got \[2, 1\]"),
    "floating": (torch.tensor([1.0, 2.0]), RuntimeError, "lengths must have dtype torch.int64, got torch.float32"),
    "elsewhere": (torch.ones(2, dtype=torch.int64, device="meta"), RuntimeError, "must be on cpu like input, got meta"),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_bad_lengths(case):
    lengths, error, message = LENGTHS[case]
    with pytest.raises(error, match=message):
        fused_rnn.LSTM(I, H)(zeros(5, 2, 3), lengths=lengths)


def test_lengths_need_a_padded_batch():
    with pytest.raises(ValueError, match="got a PackedSequence, which has its own lengths"):
        fused_rnn.GRU(I, H)(pack_sequence([zeros(4, 3)]), lengths=[4])
    with pytest.raises(ValueError, match="input must be 3-D, got 2-D"):
        fused_rnn.GRU(I, H)(zeros(4, 3), lengths=[4])


CONSTRUCTORS = {
    "hidden_size 0": dict(hidden_size=0),
    "negative hidden_size": dict(hidden_size=-1),
    "hidden_size of a float": dict(hidden_size=2.0),
    "input_size 0": dict(input_size=0),
    "num_layers 0": dict(num_layers=0),
    "proj_size too large": dict(proj_size=4),
    "negative proj_size": dict(proj_size=-1),
    "dropout past 1": dict(dropout=1.5, num_layers=2),
    "dropout True": dict(dropout=True, num_layers=2),
    "bias 1": dict(bias=1),
    "batch_first None": dict(batch_first=None),
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_bad_arguments(case):
    arguments = {"input_size": I, "hidden_size": H} | CONSTRUCTORS[case]
    try:
        nn.LSTM(**arguments)
    except (TypeError, ValueError) as error:
        theirs = error
    else:
        pytest.skip("this PyTorch takes it, and so do we: the checks are PyTorch's own")
    with pytest.raises(type(theirs)) as ours:
        fused_rnn.LSTM(**arguments)
    assert str(ours.value) == str(theirs)


@pytest.mark.parametrize(
    "options", [dict(nonlinearity="sigmoid"), dict(nonlinearity=False), dict(proj_size=2)], ids=str
)
def test_bad_arguments_of_an_rnn(options):
    with pytest.raises(ValueError) as theirs:
        nn.RNN(I, H, **options)
    with pytest.raises(ValueError) as ours:
        fused_rnn.RNN(I, H, **options)
    assert str(ours.value) == str(theirs.value)


def test_arguments_of_our_own():
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: int"):
        fused_rnn.GRU(I, H, reset_after=1)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        fused_rnn.GRU(I, H, dropout=0.5)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_weights_of_the_wrong_shape(name):
    """A float32 nn.LSTM reads past their end."""
    module = fused_rnn.LSTM(I, H)
    setattr(module, name, nn.Parameter(zeros(2, 2)))
    with pytest.raises(RuntimeError, match=rf"{name} must be .*, got \[2, 2\]|must be .*\[16, .\]"):
        module(zeros(5, 2, 3))


def test_a_packed_sequence_that_lies():
    packed = PackedSequence(zeros(3, I), torch.tensor([2, 2]))
    with pytest.raises(RuntimeError):
        fused_rnn.LSTM(I, H)(packed)
