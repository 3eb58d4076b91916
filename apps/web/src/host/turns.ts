/**
 * A macrotask between steps of an answer: runs of a session in WebAssembly end in microtasks, between which a page, or a
 * worker, would never hear that somebody wants it to stop.
 */

const globals = globalThis as { setImmediate?: (task: () => void) => unknown };

/** Ends when everything that waits has had its turn. */
export function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    if (globals.setImmediate) {
      globals.setImmediate(() => resolve());
      return;
    }
    const channel = new MessageChannel(); // a timer would be held back by some milliseconds
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}
