"""The layers in Triton: what runs where no CUDA code of ours does. Imported only when it is chosen.

``cells`` has the equations, ``tiles`` loads, stores and products, ``kernels`` the loops, ``plan`` the choice of a form
and its tiles, ``ops`` the ops.
"""
