#!/usr/bin/python3
"""Prints the times of a stats-dump file as JSON: {"frozen_us": …, "freezing_us": …}.

stats-dump: two magics of four bytes, a length of four, then a stats_entry whose field 1 is the
dump_stats_entry; its fields 1 and 2 are freezing_time and frozen_time (docs/images.md)."""

import json
import sys


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        elif key & 7 == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            sys.exit(f"frozen: wire type {key & 7} is not used in statistics")
        yield key >> 3, value


with open(sys.argv[1], "rb") as file:
    entry = dict(fields(file.read()[12:]))
dump = dict(fields(entry[1]))
print(json.dumps({"freezing_us": dump.get(1, 0), "frozen_us": dump.get(2, 0)}))
