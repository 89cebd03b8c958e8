"""Runs a command whose save fails while another write goes on; the write ends after the save's loop is closed."""

import asyncio

import tensorstore as ts

from big_distill import cli
from big_distill.errors import RunError


async def write(future):
    await future


async def save(future):
    task = asyncio.ensure_future(write(future))
    await asyncio.wait([task], timeout=0.1)


def main():
    promise, future = ts.Promise.new()
    loop = asyncio.new_event_loop()  # Orbax uses such a loop
    loop.run_until_complete(save(future))
    loop.close()
    promise.set_result(0)
    raise RunError("the disk is full")


if __name__ == "__main__":
    cli.run(main)
