"""Encodes and decodes small integers with canonical Huffman codes, by whole arrays.

The method is that of Huffman 1952, "A method for the construction of minimum-redundancy codes". Symbols are coded in
blocks, and the length of each block is stored (32 bits for 4,096 symbols). So a decoder takes a step in all blocks at
once.
"""

from __future__ import annotations

import heapq
import struct
import zlib

import numpy as np

MAX_SYMBOLS = 1 << 13
_MAX_LENGTH = 16  # bits of the longest code
_BLOCK = 4096


def encode(symbols: np.ndarray) -> bytes:
    """Encodes integers in [0, MAX_SYMBOLS) with a code that is made for them."""
    lengths = _code_lengths(np.bincount(symbols))
    codes = _canonical(lengths)
    bits = lengths[symbols]
    ends = np.cumsum(bits)
    starts = ends - bits
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for bit in range(int(bits.max(initial=0))):
        has = bits > bit
        stream[starts[has] + bit] = (codes[symbols[has]] >> (bits[has] - 1 - bit)) & 1
    block_bits = np.add.reduceat(bits, np.arange(0, len(bits), _BLOCK)) if len(bits) else np.zeros(0)
    table = zlib.compress(lengths.astype(np.uint8).tobytes(), 9)
    sizes = block_bits.astype("<u4").tobytes()
    return struct.pack("<II", len(symbols), len(table)) + table + sizes + np.packbits(stream).tobytes()


def decode(data: bytes) -> np.ndarray:
    """Decodes what `encode` returned, as int64 [N].

    Raises:
      ValueError: the bytes are no such stream.
    """
    if len(data) < 8:
        raise ValueError("a stream lacks its sizes")
    count, table_size = struct.unpack_from("<II", data)
    lengths = np.frombuffer(_decompressed(data[8 : 8 + table_size]), np.uint8).astype(np.int64)
    num_blocks = -(-count // _BLOCK)
    start = 8 + table_size + 4 * num_blocks
    if len(data) < start or count > 8 * (len(data) - start):
        raise ValueError("a stream ends in its table, or has more symbols than bits")
    block_bits = np.frombuffer(data, "<u4", num_blocks, 8 + table_size).astype(np.int64)
    if count == 0:
        return np.zeros(0, np.int64)
    if 8 * (len(data) - start) < block_bits.sum() or not 0 < lengths.max(initial=0) <= _MAX_LENGTH:
        raise ValueError("a stream is shorter than its blocks, or has codes that are too long")
    symbol_of, length_of = _lookup(lengths)
    padded = np.frombuffer(data[start:] + bytes(8), np.uint8).astype(np.uint32)
    words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    positions = np.cumsum(block_bits) - block_bits
    last = 8 * len(words) - 8
    symbols = np.empty((_BLOCK, num_blocks), np.int64)
    for i in range(min(_BLOCK, count)):
        at = np.minimum(positions, last)  # the last block may have ended: what is read here is cut off below
        window = (words[at >> 3] << (at & 7).astype(np.uint32)) >> np.uint32(32 - _MAX_LENGTH)
        symbols[i] = symbol_of[window]
        positions = positions + length_of[window]
    return symbols.T.reshape(-1)[:count]


def _code_lengths(counts: np.ndarray) -> np.ndarray:
    """Returns the number of bits of each symbol's code, at most 16; 0 for a symbol that does not occur."""
    if len(counts) > MAX_SYMBOLS:
        raise ValueError(f"a symbol is {len(counts) - 1}: expected less than {MAX_SYMBOLS}")
    weights = counts.astype(np.int64)
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]] = [
            (int(weight), symbol, (symbol,)) for symbol, weight in enumerate(weights) if weight
        ]
        lengths = np.zeros(len(counts), np.int64)
        if len(heap) == 1:
            lengths[heap[0][1]] = 1
        heapq.heapify(heap)
        while len(heap) > 1:
            (a, first, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[[*left, *right]] += 1
            heapq.heappush(heap, (a + b, first, (*left, *right)))
        if lengths.max(initial=0) <= _MAX_LENGTH:
            return lengths
        weights = np.where(weights > 0, weights // 2 + 1, 0)  # flatter counts, until the longest code is short enough


def _canonical(lengths: np.ndarray) -> np.ndarray:
    """Returns codes of these lengths, rising with length and then with the symbol."""
    codes = np.zeros(len(lengths), np.int64)
    code = previous = 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            code <<= length - previous
            codes[symbol], previous = code, length
            code += 1
    return codes


def _lookup(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for every 16 bits that may come next the symbol whose code they begin with, and that code's length."""
    symbols = np.flatnonzero(lengths)
    spans = 1 << (_MAX_LENGTH - lengths[symbols])
    order = np.lexsort((symbols, lengths[symbols]))
    if spans.sum() > 1 << _MAX_LENGTH:
        raise ValueError("no code has these lengths")
    symbol_of = np.repeat(symbols[order], spans[order])
    symbol_of = np.pad(symbol_of, (0, (1 << _MAX_LENGTH) - len(symbol_of)), mode="edge")
    return symbol_of, lengths[symbol_of]


def _decompressed(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    table = inflate.decompress(data, MAX_SYMBOLS)
    if not inflate.eof:
        raise ValueError("a table is cut off, or too long")
    return table
