"""LoRA-Dash written from the formulas of arXiv 2409.01035, dense and in float64: what the library is checked against.

Shares no code with dash_vision. Everything is a numpy array; W is [out, in].
"""

import numpy as np


def dense_update(A, B, alpha, rank, U=None, V=None, dsigma=None):
    """dW = (alpha / r) B A + U diag(dsigma) V^T with U [out, k], V [k, in]."""
    update = np.zeros((B.shape[0], A.shape[1]))
    if rank:
        update = update + (alpha / rank) * B @ A
    if dsigma is not None and len(dsigma):
        update = update + U @ np.diag(dsigma) @ V
    return update


def dense_rates(W, dW, eps):
    """delta_i = |u_i^T dW v_i| / (sigma_i + eps), one dense product for each i."""
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return np.array([abs(U[:, i] @ dW @ Vh[i]) / (S[i] + eps) for i in range(len(S))])


def forward(x, W, bias, dW):
    return x @ (W + dW).T + (0 if bias is None else bias)


def gradients(x, W, A, B, alpha, rank, U, V, dsigma, upstream):
    """Gradients of sum(y * upstream) by the chain rule through the dense update: (dA, dB, ddsigma, dx)."""
    dW = dense_update(A, B, alpha, rank, U, V, dsigma)
    G = upstream.T @ x  # d loss / d dW, [out, in]
    dA = (alpha / rank) * B.T @ G
    dB = (alpha / rank) * G @ A.T
    ddsigma = np.array([U[:, i] @ G @ V[i] for i in range(len(dsigma))])
    return dA, dB, ddsigma, upstream @ (W + dW)


def conv2d(x, kernel, stride, padding):
    """Plain loops: x [n, in, h, w], kernel [out, in, kh, kw], zero padding."""
    n, _, h, w = x.shape
    out, _, kh, kw = kernel.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    oh, ow = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    y = np.zeros((n, out, oh, ow))
    for i in range(oh):
        for j in range(ow):
            patch = padded[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
            y[:, :, i, j] = np.einsum("nchw,ochw->no", patch, kernel)
    return y
