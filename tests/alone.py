"""A reference for `resets` that follows their definition: every sequence in a call of its own."""

import itertools

import torch


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def alone(module, x, hx, lengths, resets):
    """The results for x [T, B, I] of the module on every sequence by itself, one call each."""
    directions = 2 if module.bidirectional else 1
    kind = as_tuple(hx)
    outputs, finals = [], []
    for b in range(x.size(1)):
        length = x.size(0) if lengths is None else int(lengths[b])
        begins = [0] + [t for t in range(1, length) if resets[t, b]]
        rows = []
        final = [state[:, b].clone() for state in kind]
        for begin, end in itertools.pairwise([*begins, length] if length else []):
            entering = [torch.zeros_like(state[:, b]) for state in kind]
            for state, initial in zip(entering, kind, strict=True):
                if begin == 0 and not resets[0, b]:
                    state[0::directions] = initial[0::directions, b]
                if end == length and directions == 2:
                    state[1::2] = initial[1::2, b]
            given = tuple(entering) if len(entering) > 1 else entering[0]
            output, states = module(x[begin:end, b], given)
            rows.append(output)
            for state, left in zip(final, as_tuple(states), strict=True):
                if end == length:
                    state[0::directions] = left[0::directions]
                if begin == 0 and directions == 2:
                    state[1::2] = left[1::2]
        padding = x.new_zeros(x.size(0) - length, directions * (module.proj_size or module.hidden_size))
        outputs.append(torch.cat([*rows, padding]))
        finals.append(final)
    return torch.stack(outputs, 1), *(torch.stack(states, 1) for states in zip(*finals, strict=True))


def alone_in_any_form(module, x, hx, resets):
    """The same for x and resets in any form that the module takes, hx None or not."""
    is_batched, leads = x.dim() == 3, x.dim() == 3 and module.batch_first

    def time_major(tensor):
        return tensor.transpose(0, 1) if leads else tensor if is_batched else tensor.unsqueeze(1)

    x, resets = time_major(x), time_major(resets)
    if hx is None:
        count = module.num_layers * (1 + module.bidirectional)
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)[: 1 + (module.mode == "LSTM")]
        states = tuple(x.new_zeros(count, x.size(1), size) for size in sizes)
    else:
        states = tuple(state if is_batched else state.unsqueeze(1) for state in as_tuple(hx))
    output, *final = alone(module, x, states, None, resets)
    final = tuple(state if is_batched else state.squeeze(1) for state in final)
    output = output.transpose(0, 1) if leads else output if is_batched else output.squeeze(1)
    return output, final if len(final) > 1 else final[0]
