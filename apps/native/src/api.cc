// The C interface: arguments checked, everything that is thrown turned into a status and one line.
#include <cstring>
#include <memory>
#include <new>

#include "chat.h"
#include "error.h"
#include "model.h"
#include "phirt.h"

struct phirt_model {
    std::shared_ptr<phirt::Model> model;
};

struct phirt_chat {
    phirt::Chat chat;
};

namespace {

phirt_status fail(phirt_error* error, phirt_status status, const char* message) {
    if (error) {
        error->status = status;
        std::strncpy(error->message, message, sizeof error->message - 1);
        error->message[sizeof error->message - 1] = '\0';
    }
    return status;
}

template <typename Work>
phirt_status guarded(phirt_error* error, Work work) {
    if (error) *error = phirt_error{};
    try {
        work();
        return PHIRT_OK;
    } catch (const phirt::Error& caught) {
        return fail(error, caught.status, caught.what());
    } catch (const std::bad_alloc&) {
        return fail(error, PHIRT_ERROR_MEMORY,
                    "the device has no memory left for this; close other apps, or use fewer media");
    } catch (const std::length_error&) {
        return fail(error, PHIRT_ERROR_MEMORY, "this needs more memory than there can be; use smaller media");
    } catch (const std::exception& caught) {
        return fail(error, PHIRT_ERROR_RUNTIME, caught.what());
    }
}

void require(const void* pointer, const char* name) {
    if (!pointer) phirt::refuse_argument(std::string(name) + " is NULL");
}

phirt_generation defaults_of(const phirt::GenerationDefaults& chosen) {
    phirt_generation generation{};
    generation.max_new_tokens = 512;
    generation.temperature = static_cast<float>(chosen.temperature);
    generation.top_k = static_cast<int32_t>(chosen.top_k);
    generation.top_p = static_cast<float>(chosen.top_p);
    generation.min_p = static_cast<float>(chosen.min_p);
    generation.repetition_penalty = static_cast<float>(chosen.repetition_penalty);
    return generation;
}

}  // namespace

extern "C" {

const char* phirt_version(void) { return PHIRT_VERSION; }
const char* phirt_onnxruntime_version(void) { return OrtGetApiBase()->GetVersionString(); }

phirt_status phirt_model_open(const char* folder, const phirt_model_options* options, phirt_model** model,
                              phirt_error* error) {
    return guarded(error, [&] {
        require(folder, "folder");
        require(model, "model");
        *model = nullptr;
        const int32_t threads = options ? options->threads : 0;
        if (threads < 0 || threads > 1024) phirt::refuse_argument("threads: accepted are 0 to 1024");
        *model = new phirt_model{std::make_shared<phirt::Model>(folder, threads)};
    });
}

void phirt_model_close(phirt_model* model) { delete model; }

phirt_status phirt_model_describe(const phirt_model* model, phirt_model_info* info, phirt_error* error) {
    return guarded(error, [&] {
        require(model, "model");
        require(info, "info");
        const phirt::Manifest& manifest = model->model->manifest;
        *info = phirt_model_info{};
        info->name = manifest.name.c_str();
        info->vocab_size = static_cast<int32_t>(manifest.geometry.vocab_size);
        info->context = static_cast<int32_t>(manifest.geometry.context);
        info->takes_images = manifest.encoder_for(phirt::Modality::image) != nullptr;
        info->takes_audio = manifest.encoder_for(phirt::Modality::audio) != nullptr;
        info->max_pixels = manifest.limits.image_pixels;
        info->max_seconds = manifest.limits.audio_seconds;
    });
}

void phirt_model_release_encoders(phirt_model* model) {
    if (model) model->model->release_encoders();
}

phirt_status phirt_model_tokenize(const phirt_model* model, const char* text, int32_t* ids, size_t capacity,
                                  size_t* count, phirt_error* error) {
    return guarded(error, [&] {
        require(model, "model");
        require(text, "text");
        require(count, "count");
        if (capacity) require(ids, "ids");
        const auto found = model->model->tokenizer.encode(text);
        std::copy_n(found.begin(), std::min(capacity, found.size()), ids);
        *count = found.size();
    });
}

phirt_status phirt_chat_create(phirt_model* model, const char* system, phirt_chat** chat,
                               phirt_error* error) {
    return guarded(error, [&] {
        require(model, "model");
        require(chat, "chat");
        *chat = nullptr;
        const std::string text = system ? system : "";
        *chat = new phirt_chat{phirt::Chat(model->model, system ? &text : nullptr)};
    });
}

void phirt_chat_destroy(phirt_chat* chat) { delete chat; }

phirt_status phirt_chat_reset(phirt_chat* chat, phirt_error* error) {
    return guarded(error, [&] {
        require(chat, "chat");
        const phirt::Chat::Turnstile alone(chat->chat);
        chat->chat.reset();
    });
}

phirt_status phirt_chat_add_image(phirt_chat* chat, const uint8_t* rgb, int32_t width, int32_t height,
                                  size_t stride, phirt_detail detail, phirt_error* error) {
    return guarded(error, [&] {
        require(chat, "chat");
        require(rgb, "rgb");
        const phirt::Chat::Turnstile alone(chat->chat);
        if (width < 1 || height < 1) phirt::refuse_media("the picture has no pixels");
        if (detail < PHIRT_DETAIL_LOW || detail > PHIRT_DETAIL_HIGH)
            phirt::refuse_argument("detail: accepted are 0 to 2");
        const int64_t pixels = int64_t{width} * height,
                      limit = chat->chat.model().manifest.limits.image_pixels;
        if (pixels > limit) {
            phirt::refuse_media("the picture has " + std::to_string(width) + " x " + std::to_string(height) +
                                " pixels, the limit is " + std::to_string(limit) + "; scale it down");
        }
        const size_t row = 3 * static_cast<size_t>(width);
        if (stride == 0) stride = row;
        if (stride < row) phirt::refuse_argument("stride: accepted are 0 and 3 * width or more");
        phirt::Picture picture{width, height, std::vector<uint8_t>(row * static_cast<size_t>(height))};
        for (int32_t y = 0; y < height; ++y) {
            std::memcpy(picture.at(0, y), rgb + static_cast<size_t>(y) * stride, row);
        }
        chat->chat.attach(chat->chat.model().prepare_image(picture, detail));
    });
}

phirt_status phirt_chat_add_audio(phirt_chat* chat, const float* samples, size_t count, int32_t channels,
                                  int32_t rate, phirt_error* error) {
    return guarded(error, [&] {
        require(chat, "chat");
        require(samples, "samples");
        const phirt::Chat::Turnstile alone(chat->chat);
        if (count > (size_t{1} << 40)) phirt::refuse_media("the recording is too long");
        chat->chat.attach(
            chat->chat.model().prepare_audio(samples, static_cast<int64_t>(count), channels, rate));
    });
}

phirt_status phirt_chat_discard_media(phirt_chat* chat, phirt_error* error) {
    return guarded(error, [&] {
        require(chat, "chat");
        const phirt::Chat::Turnstile alone(chat->chat);
        chat->chat.discard_media();
    });
}

void phirt_generation_defaults(const phirt_model* model, phirt_generation* generation) {
    if (generation)
        *generation = defaults_of(model ? model->model->manifest.generation : phirt::GenerationDefaults());
}

phirt_status phirt_chat_send(phirt_chat* chat, const char* text, const phirt_generation* generation,
                             phirt_on_piece on_piece, void* user, phirt_result* result, phirt_error* error) {
    return guarded(error, [&] {
        require(chat, "chat");
        require(text, "text");
        const phirt::Chat::Turnstile alone(chat->chat);
        const phirt_generation settings =
            generation ? *generation : defaults_of(chat->chat.model().manifest.generation);
        phirt_result ignored;
        const auto give = [&](const std::string& piece) {
            return !on_piece || on_piece(piece.c_str(), piece.size(), user) == 0;
        };
        chat->chat.send(text, settings, give, result ? *result : ignored);
    });
}

void phirt_chat_cancel(phirt_chat* chat) {
    if (chat) chat->chat.cancel();
}

const char* phirt_chat_answer(const phirt_chat* chat) { return chat ? chat->chat.answer.c_str() : ""; }

const int32_t* phirt_chat_answer_ids(const phirt_chat* chat, size_t* count) {
    if (count) *count = chat ? chat->chat.answer_ids.size() : 0;
    return chat ? chat->chat.answer_ids.data() : nullptr;
}

const int32_t* phirt_chat_prompt_ids(const phirt_chat* chat, size_t* count) {
    if (count) *count = chat ? chat->chat.prompt_ids.size() : 0;
    return chat ? chat->chat.prompt_ids.data() : nullptr;
}

}  // extern "C"
