"""Helpers of the tests of tune and of the choices."""

import dataclasses

import torch

import fused_rnn
from fused_rnn import backends, choices
from fused_rnn.choices import Choice


def tune(rnn=None, x=None, **options):
    x = torch.randn(9, 3, 5) if x is None else x
    return fused_rnn.tune(fused_rnn.LSTM(5, 7) if rnn is None else rnn, x, seconds=0.01, **options)


def file_of(folder):
    (file,) = folder.iterdir()
    return file


def choose(rnn, x):
    explained = fused_rnn.explain(rnn, x)
    return backends.choose(explained.problem).name, explained


def choose_for(rnn, x, route):
    """Put a choice, as if it had been measured."""
    choices.put({choices.kind_of(fused_rnn.explain(rnn, x).problem): Choice(route, 2.0, "2026-12-01")})
    backends.forget()


def replaced(monkeypatch, name, run):
    """The backend of that name with another way to run a call."""
    new = dataclasses.replace(backends.ROUTES[name], run=run)
    monkeypatch.setattr(backends, "BACKENDS", tuple(new if b.name == name else b for b in backends.BACKENDS))
    monkeypatch.setitem(backends.ROUTES, name, new)
    return new.run
