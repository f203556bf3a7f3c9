"""A Python service of asyncio, threads and multiprocessing: an event loop that answers lines, a pool of processes, a
manager, memory and a lock that processes share, a child behind pipes, a thread behind queues."""

import asyncio
import concurrent.futures
import hashlib
import json
import multiprocessing
import multiprocessing.shared_memory
import queue
import signal
import threading

LOCK = multiprocessing.Lock()
TOTAL = multiprocessing.Value("Q", 0)


def in_pool(text, memory):
    """Runs in a process of the pool."""
    shared = multiprocessing.shared_memory.SharedMemory(memory)
    try:
        with LOCK:
            TOTAL.value += 1
            shared.buf[0:8] = TOTAL.value.to_bytes(8, "little")
            return hashlib.sha256(text.encode()).hexdigest(), int.from_bytes(shared.buf[0:8], "little")
    finally:
        shared.close()


def in_thread(questions):
    while True:
        loop, number, answer = questions.get()
        loop.call_soon_threadsafe(answer.set_result, number * 2)


class Service:
    def __init__(self, pool, names, memory):
        self.pool, self.names, self.memory = pool, names, memory
        self.ticks = self.signals = 0
        self.questions = queue.SimpleQueue()
        threading.Thread(target=in_thread, args=(self.questions,), daemon=True).start()
        self.cat = None
        self.cat_lock = asyncio.Lock()

    async def tick(self):
        while True:
            await asyncio.sleep(0.01)
            self.ticks += 1

    def signalled(self):
        self.signals += 1

    async def through_cat(self, text):
        async with self.cat_lock:
            self.cat.stdin.write(text.encode() + b"\n")
            await self.cat.stdin.drain()
            return (await self.cat.stdout.readline()).decode().strip()

    async def in_thread(self, number):
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self.questions.put((loop, number, answer))
        return await answer

    def counted(self, key):
        """The manager is a process behind a socket, so this is called in a thread of the loop's own pool."""
        count = self.names.get(key, 0) + 1
        self.names[key] = count
        return count

    async def visit(self, key, number):
        loop = asyncio.get_running_loop()
        count = await loop.run_in_executor(None, self.counted, key)
        (hashed, total), echo, twice = await asyncio.gather(
            loop.run_in_executor(self.pool, in_pool, key + number, self.memory.name), self.through_cat(number),
            self.in_thread(int(number)))
        return {"count": count, "hash": hashed, "sum": total, "kept": echo, "twice": twice, "ticks": self.ticks,
                "signals": self.signals}

    async def talk(self, reader, writer):
        while line := await reader.readline():
            writer.write(json.dumps(await self.visit(*line.decode().split())).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def run(self):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.signalled)
        self.cat = await asyncio.create_subprocess_exec("/bin/cat", stdin=asyncio.subprocess.PIPE,
                                                        stdout=asyncio.subprocess.PIPE)
        server = await asyncio.start_server(self.talk, "0.0.0.0", 8080)
        await asyncio.gather(self.tick(), server.serve_forever())


def main():
    with multiprocessing.Manager() as manager, concurrent.futures.ProcessPoolExecutor(2) as pool:
        memory = multiprocessing.shared_memory.SharedMemory(create=True, size=65536)
        # All processes are made before there are threads.
        list(pool.map(in_pool, ["first"] * 2, [memory.name] * 2))
        asyncio.run(Service(pool, manager.dict(), memory).run())


if __name__ == "__main__":
    main()
