/* phirt for apps: a bundle that `phirt export --target android` or `--target ios` has made answers here.
 *
 * One C interface for Kotlin (JNI), Swift and everything else. Nothing is downloaded, nothing leaves the
 * device.
 *
 *   phirt_error error;
 *   phirt_model *model;
 *   phirt_chat *chat;
 *   if (phirt_model_open("/path/of/the/package", NULL, &model, &error)) fail(error.message);
 *   if (phirt_chat_create(model, NULL, &chat, &error)) fail(error.message);
 *   phirt_chat_add_image(chat, pixels, width, height, 0, PHIRT_DETAIL_AUTO, &error);
 *   phirt_chat_send(chat, "What is this?", NULL, on_piece, NULL, &result, &error);
 *   phirt_chat_destroy(chat);
 *   phirt_model_close(model);
 *
 * Every function that can fail returns a status, 0 when it is done, and fills `error` (which may be NULL)
 * with one line that names the cause and the remedy. Text is UTF-8 and ends with a zero byte.
 *
 * Threads: a model may be used by all of them at once. A chat answers one request at a time, and a second one
 * is refused with PHIRT_ERROR_BUSY; only phirt_chat_cancel may be called while it answers. phirt_chat_send
 * computes in the thread that calls it, so call it from a thread of your own and not from that of the user
 * interface.
 *
 * A chat keeps its model alive: they may be closed in any order.
 */
#ifndef PHIRT_H
#define PHIRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PHIRT_API __declspec(dllexport)
#else
#define PHIRT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum phirt_status {
    PHIRT_OK = 0,
    PHIRT_ERROR_ARGUMENT = 1, /* a value that the function does not take */
    PHIRT_ERROR_BUNDLE = 2,   /* the package is damaged, or not made for this library */
    PHIRT_ERROR_MEDIA = 3,    /* a picture or a recording that the model cannot take */
    PHIRT_ERROR_CONTEXT = 4,  /* the conversation is longer than the model's context */
    PHIRT_ERROR_MEMORY = 5,   /* the device has no memory left for it */
    PHIRT_ERROR_BUSY = 6,     /* the chat is answering another request */
    PHIRT_ERROR_RUNTIME = 7   /* onnxruntime failed */
} phirt_status;

typedef struct phirt_error {
    phirt_status status;
    char message[1024];
} phirt_error;

typedef struct phirt_model phirt_model; /* an opened package */
typedef struct phirt_chat phirt_chat;   /* one conversation, with what was computed of it */

/* The version of this library, and of the onnxruntime that it runs on. */
PHIRT_API const char* phirt_version(void);
PHIRT_API const char* phirt_onnxruntime_version(void);

/* ---- a model ----------------------------------------------------------------------------------------------
 */

typedef struct phirt_model_options {
    int32_t threads; /* for the decoder and encoders; 0: as many as onnxruntime finds good */
} phirt_model_options;

/* Opens the package in `folder`. `options` may be NULL. Encoders are opened when they are first needed. */
PHIRT_API phirt_status phirt_model_open(const char* folder, const phirt_model_options* options,
                                        phirt_model** model, phirt_error* error);
PHIRT_API void phirt_model_close(phirt_model* model);

typedef struct phirt_model_info {
    const char* name; /* valid as long as the model */
    int32_t vocab_size;
    int32_t context;      /* tokens of the longest conversation */
    int32_t takes_images; /* 0 or 1 */
    int32_t takes_audio;  /* 0 or 1 */
    int64_t max_pixels;   /* of one picture */
    double max_seconds;   /* of one recording */
} phirt_model_info;

PHIRT_API phirt_status phirt_model_describe(const phirt_model* model, phirt_model_info* info,
                                            phirt_error* error);

/* Gives the memory of the encoders back; they open again when they are needed. */
PHIRT_API void phirt_model_release_encoders(phirt_model* model);

/* Token ids of text as somebody types it. Writes at most `capacity` of them, and always how many there are.
 */
PHIRT_API phirt_status phirt_model_tokenize(const phirt_model* model, const char* text, int32_t* ids,
                                            size_t capacity, size_t* count, phirt_error* error);

/* ---- a conversation
 * ----------------------------------------------------------------------------------------- */

/* A conversation with an empty history. `system` is what the model is told first; NULL for nothing. */
PHIRT_API phirt_status phirt_chat_create(phirt_model* model, const char* system, phirt_chat** chat,
                                         phirt_error* error);
PHIRT_API void phirt_chat_destroy(phirt_chat* chat);

/* Forgets all turns and media; the system message stays. */
PHIRT_API phirt_status phirt_chat_reset(phirt_chat* chat, phirt_error* error);

typedef enum phirt_detail { /* how closely a picture is looked at, where the model can choose */
                            PHIRT_DETAIL_LOW = 0,
                            PHIRT_DETAIL_AUTO = 1,
                            PHIRT_DETAIL_HIGH = 2
} phirt_detail;

/* Attaches a picture to the next turn: 8-bit red, green, blue, upright, rows from the top, `stride` bytes
 * from one row to the next (0: width * 3). The pixels are processed before the function returns. */
PHIRT_API phirt_status phirt_chat_add_image(phirt_chat* chat, const uint8_t* rgb, int32_t width,
                                            int32_t height, size_t stride, phirt_detail detail,
                                            phirt_error* error);

/* Attaches a recording to the next turn: `count` samples of each of `channels`, interleaved, from -1 to 1, at
 * `rate` samples a second (8000 to 384000). */
PHIRT_API phirt_status phirt_chat_add_audio(phirt_chat* chat, const float* samples, size_t count,
                                            int32_t channels, int32_t rate, phirt_error* error);

/* Drops what was attached and not sent yet. */
PHIRT_API phirt_status phirt_chat_discard_media(phirt_chat* chat, phirt_error* error);

typedef struct phirt_generation {
    int32_t max_new_tokens;
    float temperature;        /* 0: always the best token */
    int32_t top_k;            /* 0: all */
    float top_p;              /* 1: all */
    float min_p;              /* 0: all */
    float repetition_penalty; /* 1: none */
    uint64_t seed;            /* of the draws; 0: another one each time */
} phirt_generation;

/* What the model's makers recommend. Change what you want to be otherwise, and give it to phirt_chat_send. */
PHIRT_API void phirt_generation_defaults(const phirt_model* model, phirt_generation* generation);

typedef enum phirt_finish {
    PHIRT_FINISH_STOP = 0,     /* the model ended its answer */
    PHIRT_FINISH_LENGTH = 1,   /* max_new_tokens were made */
    PHIRT_FINISH_CONTEXT = 2,  /* the context is full */
    PHIRT_FINISH_CANCELLED = 3 /* phirt_chat_cancel, or the callback */
} phirt_finish;

typedef struct phirt_result {
    phirt_finish finish;
    int32_t prompt_tokens;
    int32_t cached_tokens; /* of the prompt, that were not computed again */
    int32_t new_tokens;
    double media_seconds; /* encoders */
    double prefill_seconds;
    double decode_seconds;
    char adapter[64]; /* the adapter by the package's rules; "none" for the base weights */
} phirt_result;

/* Called with each piece of the answer, whole characters, in the thread that called phirt_chat_send.
 * Returning anything but 0 ends the answer. */
typedef int32_t (*phirt_on_piece)(const char* text, size_t length, void* user);

/* Sends a turn with the media attached so far, and computes the answer, which becomes part of the history as
 * far as it came. `generation`, `on_piece`, `user` and `result` may be NULL. When it fails, history and
 * attached media are as before. */
PHIRT_API phirt_status phirt_chat_send(phirt_chat* chat, const char* text, const phirt_generation* generation,
                                       phirt_on_piece on_piece, void* user, phirt_result* result,
                                       phirt_error* error);

/* Ends the answer that is being made within one step. For any thread; does nothing where none is being made.
 */
PHIRT_API void phirt_chat_cancel(phirt_chat* chat);

/* The last answer as text and as ids, and the ids of its prompt; valid until the next call with this chat. */
PHIRT_API const char* phirt_chat_answer(const phirt_chat* chat);
PHIRT_API const int32_t* phirt_chat_answer_ids(const phirt_chat* chat, size_t* count);
PHIRT_API const int32_t* phirt_chat_prompt_ids(const phirt_chat* chat, size_t* count);

#ifdef __cplusplus
}
#endif

#endif
