// What phirt.h promises, on a package: `phirt_interface PACKAGE`. Prints one line for each promise that is
// broken.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "phirt.h"

namespace {

int broken = 0;

void expect(bool kept, const char* promise) {
    if (kept) return;
    std::printf("broken: %s\n", promise);
    ++broken;
}

struct Listener {
    std::string text;
    int pieces = 0;
    int stop_after = 1 << 30;
    phirt_chat* cancel = nullptr;
    phirt_chat* send_again = nullptr;
    phirt_status inner = PHIRT_OK;
};

int32_t listen(const char* text, size_t length, void* user) {
    auto* listener = static_cast<Listener*>(user);
    listener->text.append(text, length);
    if (listener->cancel) phirt_chat_cancel(listener->cancel);
    if (listener->send_again) {
        phirt_error error;
        listener->inner =
            phirt_chat_send(listener->send_again, "x", nullptr, nullptr, nullptr, nullptr, &error);
    }
    return ++listener->pieces >= listener->stop_after;
}

phirt_chat* new_chat(phirt_model* model, const char* system = nullptr) {
    phirt_chat* chat = nullptr;
    expect(phirt_chat_create(model, system, &chat, nullptr) == PHIRT_OK, "a chat can be created");
    return chat;
}

std::vector<int32_t> ids_of(const phirt_chat* chat) {
    size_t count = 0;
    const int32_t* ids = phirt_chat_answer_ids(chat, &count);
    return {ids, ids + count};
}

std::vector<int32_t> ask(phirt_model* model, const char* text, phirt_generation generation) {
    phirt_chat* chat = new_chat(model);
    phirt_error error;
    expect(phirt_chat_send(chat, text, &generation, nullptr, nullptr, nullptr, &error) == PHIRT_OK,
           error.message);
    auto ids = ids_of(chat);
    phirt_chat_destroy(chat);
    return ids;
}

phirt_generation settings(int32_t tokens) {
    phirt_generation generation;
    phirt_generation_defaults(nullptr, &generation);
    generation.max_new_tokens = tokens;
    return generation;
}

void check_arguments(phirt_model* model) {
    phirt_error error;
    phirt_model* other = model;
    expect(phirt_model_open("/nowhere", nullptr, &other, &error) == PHIRT_ERROR_BUNDLE && !other &&
               error.message[0],
           "a folder that is not there is refused with a message");
    expect(phirt_model_open(nullptr, nullptr, &other, &error) == PHIRT_ERROR_ARGUMENT, "NULL is refused");
    expect(phirt_model_open(nullptr, nullptr, &other, nullptr) == PHIRT_ERROR_ARGUMENT, "error may be NULL");
    expect(phirt_chat_send(nullptr, "x", nullptr, nullptr, nullptr, nullptr, &error) == PHIRT_ERROR_ARGUMENT,
           "no chat is refused");
    phirt_chat* chat = new_chat(model);
    for (const float bad : {-1.0f, NAN, 2000.0f}) {
        phirt_generation generation = settings(4);
        generation.temperature = bad;
        expect(phirt_chat_send(chat, "x", &generation, nullptr, nullptr, nullptr, &error) ==
                   PHIRT_ERROR_ARGUMENT,
               "a temperature out of range is refused");
    }
    phirt_chat_destroy(chat);
    phirt_chat_destroy(nullptr);
    phirt_model_close(nullptr);
    int32_t ids[2] = {-1, -1};
    size_t count = 0;
    expect(phirt_model_tokenize(model, "<|end|> and \xff more", ids, 2, &count, &error) == PHIRT_OK &&
               count > 2 && ids[1] >= 0,
           "tokenize counts all ids and writes as many as there is room for");
}

void check_media(phirt_model* model, const phirt_model_info& info) {
    phirt_error error;
    phirt_chat* chat = new_chat(model);
    std::vector<uint8_t> pixels(3 * 64 * 48, 120);
    if (info.takes_images) {
        expect(phirt_chat_add_image(chat, pixels.data(), 0, 48, 0, PHIRT_DETAIL_AUTO, &error) ==
                   PHIRT_ERROR_MEDIA,
               "no width");
        expect(phirt_chat_add_image(chat, pixels.data(), 64, 48, 10, PHIRT_DETAIL_AUTO, &error) ==
                   PHIRT_ERROR_ARGUMENT,
               "a short stride");
        expect(phirt_chat_add_image(chat, pixels.data(), 2000000000, 2000000000, 0, PHIRT_DETAIL_AUTO,
                                    &error) == PHIRT_ERROR_MEDIA,
               "more pixels than the limit");
        expect(phirt_chat_add_image(chat, pixels.data(), 64, 48, 0, PHIRT_DETAIL_AUTO, &error) == PHIRT_OK,
               error.message);
    }
    std::vector<float> silence(16000, 0.0f), broken_samples(16000, NAN), tone(16000);
    for (size_t i = 0; i < tone.size(); ++i) tone[i] = 0.3f * std::sin(static_cast<float>(i) * 0.2f);
    if (info.takes_audio) {
        expect(phirt_chat_add_audio(chat, silence.data(), 16000, 1, 16000, &error) == PHIRT_ERROR_MEDIA,
               "silence");
        expect(
            phirt_chat_add_audio(chat, broken_samples.data(), 16000, 1, 16000, &error) == PHIRT_ERROR_MEDIA,
            "no numbers");
        expect(phirt_chat_add_audio(chat, tone.data(), 16000, 0, 16000, &error) == PHIRT_ERROR_MEDIA,
               "no channels");
        expect(phirt_chat_add_audio(chat, tone.data(), 16000, 1, 100, &error) == PHIRT_ERROR_MEDIA,
               "a rate of 100");
        expect(phirt_chat_add_audio(chat, tone.data(), 0, 1, 16000, &error) == PHIRT_ERROR_MEDIA,
               "no samples");
        expect(
            phirt_chat_add_audio(chat, tone.data(), size_t{1} << 41, 1, 16000, &error) == PHIRT_ERROR_MEDIA,
            "too long");
        expect(phirt_chat_add_audio(chat, tone.data(), 8000, 2, 44100, &error) == PHIRT_OK, error.message);
    }
    phirt_result result;
    const phirt_generation few = settings(2);
    expect(phirt_chat_send(chat, "What?", &few, nullptr, nullptr, &result, &error) == PHIRT_OK,
           error.message);
    const bool has_media = info.takes_images || info.takes_audio;
    expect((std::strcmp(result.adapter, "none") != 0) == has_media, "media take an adapter");
    phirt_model_release_encoders(model);
    expect(phirt_chat_reset(chat, &error) == PHIRT_OK, error.message);
    expect(phirt_chat_send(chat, "What?", &few, nullptr, nullptr, &result, &error) == PHIRT_OK,
           error.message);
    expect(std::strcmp(result.adapter, "none") == 0, "reset forgets media");
    if (info.takes_images) phirt_chat_add_image(chat, pixels.data(), 64, 48, 0, PHIRT_DETAIL_LOW, &error);
    expect(phirt_chat_discard_media(chat, &error) == PHIRT_OK, error.message);
    phirt_chat_send(chat, "And?", &few, nullptr, nullptr, &result, &error);
    expect(std::strcmp(result.adapter, "none") == 0, "discarded media are not sent");
    phirt_chat_destroy(chat);
}

void check_answers(phirt_model* model) {
    phirt_generation drawn = settings(12);
    drawn.temperature = 1.5f, drawn.seed = 7;
    const auto first = ask(model, "Tell me a story.", drawn);
    expect(first == ask(model, "Tell me a story.", drawn), "a seed repeats an answer");
    drawn.seed = 8;
    expect(first != ask(model, "Tell me a story.", drawn), "another seed gives another answer");
    drawn.top_k = 1;
    expect(ask(model, "Tell me a story.", drawn) == ask(model, "Tell me a story.", settings(12)),
           "top_k 1 is greedy");
    drawn.top_k = 0, drawn.top_p = 1e-6f;
    expect(ask(model, "Tell me a story.", drawn) == ask(model, "Tell me a story.", settings(12)),
           "a tiny top_p is greedy");

    phirt_error error;
    phirt_result result;
    phirt_chat* chat = new_chat(model);
    Listener listener;
    const phirt_generation some = settings(12);
    expect(phirt_chat_send(chat, "Tell me a story.", &some, listen, &listener, &result, &error) == PHIRT_OK,
           error.message);
    expect(listener.text == phirt_chat_answer(chat), "pieces make the answer");
    expect(phirt_chat_send(chat, "And then?", &some, nullptr, nullptr, &result, &error) == PHIRT_OK,
           error.message);
    expect(result.cached_tokens > 10, "a second turn goes on from what is cached");
    phirt_chat_destroy(chat);

    chat = new_chat(model);
    Listener cancelling;
    cancelling.cancel = chat;
    phirt_chat_send(chat, "Tell me a story.", &some, listen, &cancelling, &result, &error);
    expect(result.finish == PHIRT_FINISH_CANCELLED && cancelling.pieces == 1, "cancel ends within one step");
    Listener stopping;
    stopping.stop_after = 2;
    phirt_chat_send(chat, "Go on.", &some, listen, &stopping, &result, &error);
    expect(result.finish == PHIRT_FINISH_CANCELLED && stopping.pieces == 2, "the callback can end it");
    Listener nested;
    nested.send_again = chat;
    expect(phirt_chat_send(chat, "Go on.", &some, listen, &nested, &result, &error) == PHIRT_OK,
           error.message);
    expect(nested.inner == PHIRT_ERROR_BUSY, "a chat answers one request at a time");
    phirt_chat_destroy(chat);
}

void check_limits(phirt_model* model, const phirt_model_info& info) {
    phirt_error error;
    phirt_chat* chat = new_chat(model);
    const phirt_generation few = settings(3);
    expect(phirt_chat_send(chat, "Hello", &few, nullptr, nullptr, nullptr, &error) == PHIRT_OK,
           error.message);
    const auto before = ids_of(chat);
    std::string endless;
    for (int32_t i = 0; i < 2 * info.context; ++i) endless += "word ";
    expect(phirt_chat_send(chat, endless.c_str(), &few, nullptr, nullptr, nullptr, &error) ==
               PHIRT_ERROR_CONTEXT,
           "what is longer than the context is refused");
    phirt_result result;
    expect(phirt_chat_send(chat, "Hello", &few, nullptr, nullptr, &result, &error) == PHIRT_OK &&
               result.prompt_tokens < 100,
           "after an error the history is as it was");
    phirt_chat_destroy(chat);
}

void check_threads(phirt_model* model) {
    const auto alone = ask(model, "Who are you?", settings(8));
    std::vector<std::thread> threads;
    std::atomic<int> same{0};
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] { same += ask(model, "Who are you?", settings(8)) == alone; });
    for (auto& thread : threads) thread.join();
    expect(same == 4, "chats answer in four threads at once as one alone");
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return 2;
    phirt_error error;
    phirt_model* model = nullptr;
    const phirt_model_options options{1};
    if (phirt_model_open(words[1], &options, &model, &error)) {
        std::fprintf(stderr, "error: %s\n", error.message);
        return 1;
    }
    phirt_model_info info;
    expect(phirt_model_describe(model, &info, &error) == PHIRT_OK && info.context > 0,
           "a model describes itself");
    check_arguments(model);
    check_media(model, info);
    check_answers(model);
    check_limits(model, info);
    check_threads(model);
    phirt_chat* last = new_chat(model);
    phirt_model_close(model);
    expect(phirt_chat_send(last, "Hi", nullptr, nullptr, nullptr, nullptr, &error) == PHIRT_OK,
           "a chat keeps its model alive");
    phirt_chat_destroy(last);
    std::printf(broken ? "%d promises broken\n" : "all promises kept\n", broken);
    return broken != 0;
}
