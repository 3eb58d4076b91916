// The door between Kotlin's `Native` and the C interface of apps/native.
//
// Text crosses as UTF-8 in byte arrays, since JNI's own strings are another
// encoding. An error becomes a PhirtException; an exception that a callback
// throws ends the answer and goes on to whoever sent it.
#include <jni.h>

#include <string>
#include <vector>

#include "phirt.h"

namespace {

phirt_model *model_of(jlong handle) {
  return reinterpret_cast<phirt_model *>(handle);
}
phirt_chat *chat_of(jlong handle) {
  return reinterpret_cast<phirt_chat *>(handle);
}

jbyteArray bytes_of(JNIEnv *env, const char *text, size_t length) {
  jbyteArray array = env->NewByteArray(static_cast<jsize>(length));
  if (array)
    env->SetByteArrayRegion(array, 0, static_cast<jsize>(length),
                            reinterpret_cast<const jbyte *>(text));
  return array;
}

// Zero bytes would end the text early for C: they are no part of it.
std::string text_of(JNIEnv *env, jbyteArray array) {
  const jsize length = env->GetArrayLength(array);
  std::string text(static_cast<size_t>(length), '\0');
  env->GetByteArrayRegion(array, 0, length,
                          reinterpret_cast<jbyte *>(text.data()));
  std::string kept;
  for (const char byte : text) {
    if (byte)
      kept.push_back(byte);
  }
  return kept;
}

// Throws a PhirtException for a status that is none of success; true where it
// did.
bool thrown(JNIEnv *env, phirt_status status, const phirt_error &error) {
  if (status == PHIRT_OK)
    return false;
  if (env->ExceptionCheck())
    return true;
  jclass type = env->FindClass("dev/phirt/PhirtException");
  if (!type)
    return true;
  jmethodID make = env->GetMethodID(type, "<init>", "(I[B)V");
  jbyteArray message = bytes_of(env, error.message,
                                std::char_traits<char>::length(error.message));
  if (!make || !message)
    return true;
  jobject exception =
      env->NewObject(type, make, static_cast<jint>(status), message);
  if (exception)
    env->Throw(static_cast<jthrowable>(exception));
  return true;
}

jintArray ids_of(JNIEnv *env, const int32_t *ids, size_t count) {
  jintArray array = env->NewIntArray(static_cast<jsize>(count));
  if (array)
    env->SetIntArrayRegion(array, 0, static_cast<jsize>(count),
                           reinterpret_cast<const jint *>(ids));
  return array;
}

// Whoever listens to an answer: dev.phirt.Listener.
struct Listener {
  JNIEnv *env;
  jobject object;
  jmethodID on_piece;
};

int32_t give(const char *text, size_t length, void *user) {
  const auto *listener = static_cast<Listener *>(user);
  JNIEnv *env = listener->env;
  jbyteArray piece = bytes_of(env, text, length);
  if (!piece)
    return 1;
  const jboolean goes_on =
      env->CallBooleanMethod(listener->object, listener->on_piece, piece);
  if (env->ExceptionCheck())
    return 1;
  env->DeleteLocalRef(piece); // a long answer has more pieces than a table of
                              // references has places
  return goes_on ? 0 : 1;
}

} // namespace

extern "C" {

JNIEXPORT jbyteArray JNICALL Java_dev_phirt_Native_versions(JNIEnv *env,
                                                            jclass) {
  const std::string text = std::string(phirt_version()) + " on onnxruntime " +
                           phirt_onnxruntime_version();
  return bytes_of(env, text.data(), text.size());
}

JNIEXPORT jlong JNICALL Java_dev_phirt_Native_openModel(JNIEnv *env, jclass,
                                                        jbyteArray folder,
                                                        jint threads) {
  phirt_error error;
  phirt_model *model = nullptr;
  const phirt_model_options options{threads};
  const std::string path = text_of(env, folder);
  thrown(env, phirt_model_open(path.c_str(), &options, &model, &error), error);
  return reinterpret_cast<jlong>(model);
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_closeModel(JNIEnv *, jclass,
                                                        jlong model) {
  phirt_model_close(model_of(model));
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_releaseEncoders(JNIEnv *, jclass,
                                                             jlong model) {
  phirt_model_release_encoders(model_of(model));
}

JNIEXPORT jbyteArray JNICALL Java_dev_phirt_Native_modelName(JNIEnv *env,
                                                             jclass,
                                                             jlong model) {
  phirt_error error;
  phirt_model_info info;
  if (thrown(env, phirt_model_describe(model_of(model), &info, &error), error))
    return nullptr;
  return bytes_of(env, info.name, std::char_traits<char>::length(info.name));
}

// Vocabulary, context, takes images, takes audio, most pixels, most
// milliseconds.
JNIEXPORT jlongArray JNICALL Java_dev_phirt_Native_modelNumbers(JNIEnv *env,
                                                                jclass,
                                                                jlong model) {
  phirt_error error;
  phirt_model_info info;
  if (thrown(env, phirt_model_describe(model_of(model), &info, &error), error))
    return nullptr;
  const jlong numbers[] = {
      info.vocab_size,   info.context,
      info.takes_images, info.takes_audio,
      info.max_pixels,   static_cast<jlong>(info.max_seconds * 1000)};
  jlongArray array = env->NewLongArray(6);
  if (array)
    env->SetLongArrayRegion(array, 0, 6, numbers);
  return array;
}

JNIEXPORT jintArray JNICALL Java_dev_phirt_Native_tokenize(JNIEnv *env, jclass,
                                                           jlong model,
                                                           jbyteArray text) {
  phirt_error error;
  const std::string clean = text_of(env, text);
  std::vector<int32_t> ids(clean.size()); // a token has a byte at least
  size_t count = 0;
  const phirt_status status = phirt_model_tokenize(
      model_of(model), clean.c_str(), ids.data(), ids.size(), &count, &error);
  return thrown(env, status, error) ? nullptr : ids_of(env, ids.data(), count);
}

JNIEXPORT jlong JNICALL Java_dev_phirt_Native_createChat(JNIEnv *env, jclass,
                                                         jlong model,
                                                         jbyteArray system) {
  phirt_error error;
  phirt_chat *chat = nullptr;
  const std::string text = system ? text_of(env, system) : std::string();
  thrown(env,
         phirt_chat_create(model_of(model), system ? text.c_str() : nullptr,
                           &chat, &error),
         error);
  return reinterpret_cast<jlong>(chat);
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_destroyChat(JNIEnv *, jclass,
                                                         jlong chat) {
  phirt_chat_destroy(chat_of(chat));
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_resetChat(JNIEnv *env, jclass,
                                                       jlong chat) {
  phirt_error error;
  thrown(env, phirt_chat_reset(chat_of(chat), &error), error);
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_discardMedia(JNIEnv *env, jclass,
                                                          jlong chat) {
  phirt_error error;
  thrown(env, phirt_chat_discard_media(chat_of(chat), &error), error);
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_cancel(JNIEnv *, jclass,
                                                    jlong chat) {
  phirt_chat_cancel(chat_of(chat));
}

// Kotlin has checked that the array has width * height * 3 bytes.
JNIEXPORT void JNICALL Java_dev_phirt_Native_addImage(JNIEnv *env, jclass,
                                                      jlong chat,
                                                      jbyteArray rgb,
                                                      jint width, jint height,
                                                      jint detail) {
  jbyte *pixels = env->GetByteArrayElements(rgb, nullptr);
  if (!pixels)
    return;
  phirt_error error;
  const phirt_status status = phirt_chat_add_image(
      chat_of(chat), reinterpret_cast<const uint8_t *>(pixels), width, height,
      0, static_cast<phirt_detail>(detail), &error);
  env->ReleaseByteArrayElements(rgb, pixels, JNI_ABORT);
  thrown(env, status, error);
}

JNIEXPORT void JNICALL Java_dev_phirt_Native_addAudio(JNIEnv *env, jclass,
                                                      jlong chat,
                                                      jfloatArray samples,
                                                      jint channels,
                                                      jint rate) {
  jfloat *values = env->GetFloatArrayElements(samples, nullptr);
  if (!values)
    return;
  phirt_error error;
  const auto count = static_cast<size_t>(env->GetArrayLength(samples)) /
                     static_cast<size_t>(channels);
  const phirt_status status = phirt_chat_add_audio(chat_of(chat), values, count,
                                                   channels, rate, &error);
  env->ReleaseFloatArrayElements(samples, values, JNI_ABORT);
  thrown(env, status, error);
}

JNIEXPORT jdoubleArray JNICALL Java_dev_phirt_Native_defaults(JNIEnv *env,
                                                              jclass,
                                                              jlong model) {
  phirt_generation generation;
  phirt_generation_defaults(model_of(model), &generation);
  const jdouble numbers[] = {static_cast<double>(generation.max_new_tokens),
                             generation.temperature,
                             static_cast<double>(generation.top_k),
                             generation.top_p,
                             generation.min_p,
                             generation.repetition_penalty};
  jdoubleArray array = env->NewDoubleArray(6);
  if (array)
    env->SetDoubleArrayRegion(array, 0, 6, numbers);
  return array;
}

// Finish, prompt tokens, cached tokens, new tokens, seconds of media, prefill
// and decoding.
JNIEXPORT jdoubleArray JNICALL Java_dev_phirt_Native_send(
    JNIEnv *env, jclass, jlong chat, jbyteArray text, jint max_new_tokens,
    jfloat temperature, jint top_k, jfloat top_p, jfloat min_p,
    jfloat repetition_penalty, jlong seed, jobject listener) {
  phirt_generation generation{};
  generation.max_new_tokens = max_new_tokens;
  generation.temperature = temperature;
  generation.top_k = top_k;
  generation.top_p = top_p;
  generation.min_p = min_p;
  generation.repetition_penalty = repetition_penalty;
  generation.seed = static_cast<uint64_t>(seed);
  jclass type = env->GetObjectClass(listener);
  Listener told{env, listener, env->GetMethodID(type, "onPiece", "([B)Z")};
  if (!told.on_piece)
    return nullptr;
  const std::string clean = text_of(env, text);
  phirt_error error;
  phirt_result result;
  const phirt_status status = phirt_chat_send(
      chat_of(chat), clean.c_str(), &generation, give, &told, &result, &error);
  if (env->ExceptionCheck() || thrown(env, status, error))
    return nullptr;
  const jdouble numbers[] = {static_cast<double>(result.finish),
                             static_cast<double>(result.prompt_tokens),
                             static_cast<double>(result.cached_tokens),
                             static_cast<double>(result.new_tokens),
                             result.media_seconds,
                             result.prefill_seconds,
                             result.decode_seconds};
  jbyteArray adapter = bytes_of(env, result.adapter,
                                std::char_traits<char>::length(result.adapter));
  jmethodID set = env->GetMethodID(type, "onAdapter", "([B)V");
  if (!adapter || !set)
    return nullptr;
  env->CallVoidMethod(listener, set, adapter);
  if (env->ExceptionCheck())
    return nullptr;
  jdoubleArray array = env->NewDoubleArray(7);
  if (array)
    env->SetDoubleArrayRegion(array, 0, 7, numbers);
  return array;
}

JNIEXPORT jbyteArray JNICALL Java_dev_phirt_Native_answer(JNIEnv *env, jclass,
                                                          jlong chat) {
  const char *text = phirt_chat_answer(chat_of(chat));
  return bytes_of(env, text, std::char_traits<char>::length(text));
}

JNIEXPORT jintArray JNICALL Java_dev_phirt_Native_answerIds(JNIEnv *env, jclass,
                                                            jlong chat) {
  size_t count = 0;
  const int32_t *ids = phirt_chat_answer_ids(chat_of(chat), &count);
  return ids_of(env, ids, count);
}

JNIEXPORT jintArray JNICALL Java_dev_phirt_Native_promptIds(JNIEnv *env, jclass,
                                                            jlong chat) {
  size_t count = 0;
  const int32_t *ids = phirt_chat_prompt_ids(chat_of(chat), &count);
  return ids_of(env, ids, count);
}

} // extern "C"
