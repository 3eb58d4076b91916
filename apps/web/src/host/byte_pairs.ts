/**
 * Byte-pair encoding over bytes: the merges of a vocabulary, applied to one word.
 *
 * Knows ids and ranks. Knows nothing of text or of how words are found.
 */

/** A merge of two neighbours: how early it was learned, and what it makes. */
interface Merge {
  readonly rank: number;
  readonly id: number;
}

const BITS = 2 ** 21; // of an id

export class BytePairs {
  private readonly merges = new Map<number, Merge>();

  /** The next merge in the order in which they were learned; of a pair that comes again, the last counts. */
  add(left: number, right: number, id: number, rank: number): void {
    this.merges.set(left * BITS + right, { rank, id });
  }

  /**
   * Joins pairs of neighbours, the earliest learned first and of equals the leftmost, until no pair was learned.
   * Changes `symbols`, and returns those that are left.
   */
  merge(symbols: number[]): number[] {
    const count = symbols.length;
    if (count < 2) return symbols;
    const before = Int32Array.from(symbols, (_, index) => index - 1);
    const behind = Int32Array.from(symbols, (_, index) => (index + 1 < count ? index + 1 : -1));
    const queue = new Queue();
    const consider = (left: number) => {
      const right = left < 0 ? -1 : behind[left];
      if (right < 0) return;
      const merge = this.merges.get(symbols[left] * BITS + symbols[right]);
      if (merge !== undefined) queue.push({ ...merge, left, pair: symbols[left] * BITS + symbols[right] });
    };
    for (let index = 0; index + 1 < count; ++index) consider(index);
    for (let best = queue.pop(); best !== undefined; best = queue.pop()) {
      const { left, pair, id } = best;
      const right = behind[left];
      if (symbols[left] < 0 || right < 0 || symbols[left] * BITS + symbols[right] !== pair) continue;
      symbols[left] = id;
      symbols[right] = -1;
      behind[left] = behind[right];
      if (behind[right] >= 0) before[behind[right]] = left;
      consider(before[left]);
      consider(left);
    }
    return symbols.filter((id) => id >= 0);
  }
}

interface Candidate extends Merge {
  readonly left: number;
  readonly pair: number; // what stood there when it was found
}

/** A binary heap: the earliest learned first, of equals the leftmost. */
class Queue {
  private readonly heap: Candidate[] = [];

  push(candidate: Candidate): void {
    const { heap } = this;
    let at = heap.length;
    heap.push(candidate);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(candidate, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = candidate;
  }

  pop(): Candidate | undefined {
    const { heap } = this;
    const [best, last] = [heap[0], heap.pop()];
    if (last === undefined || heap.length === 0) return best;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) child += 1;
      if (!isBefore(heap[child], last)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = last;
    return best;
  }
}

function isBefore(a: Candidate, b: Candidate): boolean {
  return a.rank !== b.rank ? a.rank < b.rank : a.left < b.left;
}
