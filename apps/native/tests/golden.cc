// Answers a package's golden conversations through the C interface: `phirt_golden PACKAGE [THREADS [CASE]]`.
//
// Prints a line for each conversation, and one with times and peak memory. The exit status is 0 where every
// prompt and every answer has the ids of golden.json.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "json.h"
#include "media_files.h"
#include "phirt.h"

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void require(phirt_status status, const phirt_error& error) {
    if (status) throw std::runtime_error(error.message);
}

std::vector<int32_t> ids_of(const phirt::Field& list) {
    std::vector<int32_t> ids;
    for (const auto& id : list.items()) ids.push_back(static_cast<int32_t>(id.integer(0, 1 << 22)));
    return ids;
}

std::string shown(const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text += " " + std::to_string(id);
    return text;
}

bool same(const char* what, const std::vector<int32_t>& wanted, const int32_t* found, size_t count) {
    const std::vector<int32_t> ours(found, found + count);
    if (ours == wanted) return true;
    std::printf("  %s are%s, golden.json has%s\n", what, shown(ours).c_str(), shown(wanted).c_str());
    return false;
}

struct Totals {
    double prefill = 0, decode = 0, media = 0;
    int64_t prompt_tokens = 0, new_tokens = 0;
};

bool answer(phirt_model* model, const phirt::Field& known, const std::string& folder, Totals& totals) {
    phirt_error error;
    phirt_chat* chat = nullptr;
    const bool has_system = known["system"].exists();
    const std::string system = has_system ? known["system"].string() : "";
    require(phirt_chat_create(model, has_system ? system.c_str() : nullptr, &chat, &error), error);
    bool all = true;
    for (const auto& turn : known["turns"].items()) {
        if (turn["image"].exists()) {
            const Ppm picture(folder + "/" + turn["image"].string());
            require(phirt_chat_add_image(chat, picture.rgb.data(), picture.width, picture.height, 0,
                                         PHIRT_DETAIL_AUTO, &error),
                    error);
        }
        if (turn["audio"].exists()) {
            const Wav clip(folder + "/" + turn["audio"].string());
            require(
                phirt_chat_add_audio(chat, clip.samples.data(), clip.samples.size(), 1, clip.rate, &error),
                error);
        }
        phirt_generation generation;
        phirt_generation_defaults(nullptr, &generation);
        generation.max_new_tokens = static_cast<int32_t>(turn["max_new_tokens"].integer(1, 1 << 20));
        std::string streamed;
        const auto on_piece = [](const char* text, size_t length, void* user) {
            static_cast<std::string*>(user)->append(text, length);
            return int32_t{0};
        };
        phirt_result result;
        require(phirt_chat_send(chat, turn["text"].string().c_str(), &generation, on_piece, &streamed,
                                &result, &error),
                error);
        size_t count = 0;
        const int32_t* prompt = phirt_chat_prompt_ids(chat, &count);
        const bool sure =
            turn["sure"].boolean();  // else rounding may change the answer, and the prompt alone counts
        all = same("ids of the prompt", ids_of(turn["prompt_ids"]), prompt, count) && all;
        const int32_t* ids = phirt_chat_answer_ids(chat, &count);
        all = (!sure || same("ids of the answer", ids_of(turn["ids"]), ids, count)) && all;
        if ((sure && streamed != turn["answer"].string()) || streamed != phirt_chat_answer(chat)) {
            std::printf("  the text is '%s'\n", streamed.c_str());
            all = false;
        }
        if (turn["adapter"].string() != result.adapter) {
            std::printf("  the adapter is %s\n", result.adapter);
            all = false;
        }
        totals.media += result.media_seconds, totals.prefill += result.prefill_seconds;
        totals.decode += result.decode_seconds;
        totals.prompt_tokens += result.prompt_tokens - result.cached_tokens,
            totals.new_tokens += result.new_tokens;
    }
    phirt_chat_destroy(chat);
    return all;
}

int run(const std::string& folder, int32_t threads, const std::string& only) {
    phirt_error error;
    phirt_model* model = nullptr;
    const phirt_model_options options{threads};
    const double begin = seconds();
    require(phirt_model_open(folder.c_str(), &options, &model, &error), error);
    const double opened = seconds() - begin;
    const phirt::JsonDocument document(read_file(folder + "/golden.json"), "golden.json");
    Totals totals;
    int right = 0, all = 0;
    for (const auto& known : document.root()["cases"].items()) {
        if (!only.empty() && known["name"].string() != only) continue;
        const double start = seconds();
        const bool good = answer(model, known, folder, totals);
        std::printf("%s: %s (%.2f s)\n", known["name"].string().c_str(), good ? "identical" : "DIFFERENT",
                    seconds() - start);
        right += good, ++all;
    }
    phirt_model_close(model);
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    std::printf(
        "%d of %d identical; onnxruntime %s, opened in %.2f s, media %.2f s, %lld prompt tokens in %.2f s, "
        "%lld new ones in %.2f s, %.2f s in all, peak memory %.0f MB\n",
        right, all, phirt_onnxruntime_version(), opened, totals.media,
        static_cast<long long>(totals.prompt_tokens), totals.prefill,
        static_cast<long long>(totals.new_tokens), totals.decode, seconds() - begin,
        static_cast<double>(usage.ru_maxrss) / 1024.0);
    return right == all ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    if (count < 2) {
        std::fprintf(stderr, "usage: phirt_golden PACKAGE [THREADS [CASE]]\n");
        return 2;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);  // emulated, a conversation takes a minute
    try {
        return run(words[1], count > 2 ? std::atoi(words[2]) : 0, count > 3 ? words[3] : "");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
