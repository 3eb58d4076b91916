/**
 * Answers conversations for tests: `node build/checks/converse.js PACKAGE` reads one on stdin, a JSON list of turns, and
 * writes a JSON object for each turn, a line each.
 *
 * A turn has `text`, `settings`, and may have `image` and `audio` (paths of PPM and WAV files), `stopAfter` and
 * `leaveAfter` (pieces, after which its signal is given, or the loop left), `meanwhile` (text of a question that is
 * asked while this one is answered), `hasNoRoom` (keys and values cannot grow while it is answered). A turn
 * `{"reset": true}` forgets all before it.
 */
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import type { Chat, SendOptions } from "../host/chat.js";
import { readPpm, readWav } from "../host/media_files.js";
import type { Onnxruntime } from "../host/runtime.js";
import { openFolder } from "../node/index.js";

const KEYS_RANK = 4; // [1, heads, positions, size]; inputs of a step have fewer axes

interface Turn {
  readonly text: string;
  readonly settings?: SendOptions;
  readonly image?: string;
  readonly audio?: string;
  readonly stopAfter?: number;
  readonly leaveAfter?: number;
  readonly meanwhile?: string;
  readonly hasNoRoom?: boolean;
  readonly reset?: boolean;
}

let hasNoRoom = false;
/** onnxruntime whose keys and values find no room when a test says so. */
const narrow: Onnxruntime = {
  InferenceSession: ort.InferenceSession,
  Tensor: new Proxy(ort.Tensor, {
    construct(target, given: unknown[]): object {
      const shape = given[2] as readonly number[] | undefined;
      if (hasNoRoom && shape?.length === KEYS_RANK) throw new RangeError("Array buffer allocation failed");
      return Reflect.construct(target, given) as object;
    },
  }),
};

async function answered(chat: Chat, turn: Turn): Promise<unknown> {
  const stopping = new AbortController();
  const read = (path: string) => new Uint8Array(readFileSync(path));
  if (turn.stopAfter === 0) stopping.abort();
  const reply = chat.send(turn.text, {
    ...turn.settings,
    images: turn.image ? [readPpm(read(turn.image))] : [],
    audio: turn.audio ? [readWav(read(turn.audio))] : [],
    signal: stopping.signal,
  });
  const pieces: string[] = [];
  let refused: unknown;
  for await (const piece of reply) {
    pieces.push(piece);
    if (turn.meanwhile !== undefined && pieces.length === 1) {
      refused = await chat.send(turn.meanwhile).finish().catch(errorOf);
    }
    if (pieces.length === turn.stopAfter) stopping.abort();
    if (pieces.length === turn.leaveAfter) break;
  }
  return { ...(await reply.finish()), pieces, refused };
}

function errorOf(error: unknown): { error: string; message: string } {
  return { error: (error as Error).name, message: (error as Error).message };
}

const [folder] = process.argv.slice(2);
try {
  const model = await openFolder(narrow, folder ?? "", { threads: 1 });
  const chat = model.chat();
  for (const turn of JSON.parse(readFileSync(0, "utf8")) as Turn[]) {
    hasNoRoom = turn.hasNoRoom ?? false;
    if (turn.reset) chat.reset();
    else console.log(JSON.stringify(await answered(chat, turn).catch(errorOf)));
  }
  await model.close();
} catch (error) {
  console.log(JSON.stringify(errorOf(error)));
  process.exitCode = 1;
}
