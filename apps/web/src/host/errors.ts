/**
 * What can go wrong for a user, as types. Each message is one line with the cause, what is accepted, and the remedy.
 */

export class PhirtError extends Error {
  constructor(message: string) {
    super(message);
    this.name = new.target.name;
  }
}

/** A value that the function does not take. */
export class ArgumentError extends PhirtError {}

/** The package is damaged, incomplete, or not made for this library. */
export class PackageError extends PhirtError {}

/** A picture or a recording that the model cannot take. */
export class MediaError extends PhirtError {}

/** The conversation is longer than the model's context. */
export class ContextError extends PhirtError {}

/** The chat is answering another request. */
export class ChatBusyError extends PhirtError {}

/** There is no memory left for it. */
export class MemoryError extends PhirtError {}

/** onnxruntime failed. */
export class RuntimeError extends PhirtError {}

/** Text of others in a message: short, on one line. */
export function shown(value: unknown, most = 80): string {
  const text = typeof value === "string" ? `'${value}'` : (JSON.stringify(value) ?? String(value));
  const line = text.replace(/\s+/g, " ");
  return line.length > most ? `${line.slice(0, most)}…` : line;
}

const NO_MEMORY =
  /bad_alloc|failed to allocate|out of memory|array buffer allocation|invalid typed array length/i;

/** An error of onnxruntime, or of the language around it, as one of the above. */
export function asPhirtError(error: unknown, doing: string): PhirtError {
  if (error instanceof PhirtError) return error;
  const text = error instanceof Error ? error.message : String(error);
  if (NO_MEMORY.test(text)) {
    return new MemoryError(
      `no memory is left for ${doing}; close other programs or pages, or use fewer media`,
    );
  }
  return new RuntimeError(`onnxruntime failed at ${doing}: ${shown(text.replaceAll("'", ""), 700)}`);
}
