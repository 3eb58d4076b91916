/**
 * Encoder kinds by the name that a manifest has for them, formula by formula as phirt/encoders.
 *
 * Knows which kinds there are. Knows nothing of sessions.
 */
import type { AudioKind, ImageKind } from "./encoder_kind.js";
import { PackageError, shown } from "./errors.js";
import { FixedImage } from "./fixed_image.js";
import type { EncoderSpec } from "./manifest.js";
import { Phi4mmAudio } from "./phi4mm_audio.js";
import { Phi4mmImage } from "./phi4mm_image.js";
import { WhisperAudio } from "./whisper_audio.js";

const IMAGE_KINDS = { phi4mm_image: Phi4mmImage, fixed_image: FixedImage };
const AUDIO_KINDS = { phi4mm_audio: Phi4mmAudio, whisper_audio: WhisperAudio };

/** Throws PackageError for a kind that is not known, or constants that do not fit. */
export function openImageKind(spec: EncoderSpec): ImageKind {
  return new (known(IMAGE_KINDS, spec))(spec.constants);
}

/** The same for sound. */
export function openAudioKind(spec: EncoderSpec): AudioKind {
  return new (known(AUDIO_KINDS, spec))(spec.constants);
}

function known<T extends object>(kinds: T, spec: EncoderSpec): T[keyof T] {
  if (Object.hasOwn(kinds, spec.kind)) return kinds[spec.kind as keyof T];
  throw new PackageError(
    `manifest.json: the encoder '${spec.name}' is of the kind ${shown(spec.kind)}, accepted: ` +
      `${Object.keys(kinds).join(", ")}; update this library`,
  );
}
