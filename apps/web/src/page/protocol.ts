/** What the page and its worker say to each other. Knows shapes of messages, nothing else. */
import type { SendOptions } from "../host/chat.js";
import type { CaseReport } from "../host/golden.js";
import type { Picture } from "../host/picture.js";
import type { Result } from "../host/reply.js";
import type { Clip } from "../host/sound.js";

export type Provider = "wasm" | "webgpu";

/** Where a package is: at a whole address of this page's own origin, or in files that were picked. */
export type Source = { readonly url: string } | { readonly picked: readonly File[] };

export interface OpenOptions {
  readonly source: Source;
  readonly provider: Provider;
  readonly threads: number;
}

export interface ModelInfo {
  readonly name: string;
  readonly maxPixels: number;
  readonly maxSeconds: number;
  readonly seconds: number;
}

export type Settings = Omit<SendOptions, "images" | "audio" | "signal">;

export type Request =
  | { readonly kind: "open"; readonly options: OpenOptions }
  | {
      readonly kind: "send";
      readonly text: string;
      readonly images: readonly Picture[];
      readonly audio: readonly Clip[];
      readonly settings: Settings;
    }
  | { readonly kind: "stop" }
  | { readonly kind: "reset" }
  | { readonly kind: "check" };

export interface Progress {
  readonly file: string;
  readonly loaded: number;
  readonly total: number;
  readonly isFetched: boolean;
}

export type Answer =
  | { readonly kind: "progress"; readonly progress: Progress }
  | { readonly kind: "ready"; readonly info: ModelInfo }
  | { readonly kind: "piece"; readonly text: string }
  | { readonly kind: "done"; readonly result: Result }
  | { readonly kind: "case"; readonly report: CaseReport }
  | { readonly kind: "checked"; readonly identical: number; readonly all: number }
  | { readonly kind: "error"; readonly message: string };
