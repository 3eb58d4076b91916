// Golden media for test programs: a PPM picture and a WAV recording, as the exporter writes them and no
// others.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

inline std::string read_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error(path + " cannot be read");
    return std::string(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
}

struct Ppm {
    int32_t width = 0, height = 0;
    std::vector<uint8_t> rgb;
    explicit Ppm(const std::string& path) {
        std::ifstream stream(path, std::ios::binary);
        std::string magic;
        int32_t most = 0;
        if (!(stream >> magic >> width >> height >> most) || magic != "P6" || most != 255 || width < 1 ||
            height < 1) {
            throw std::runtime_error(path + " is no PPM");
        }
        stream.get();
        rgb.resize(3 * static_cast<size_t>(width) * static_cast<size_t>(height));
        if (!stream.read(reinterpret_cast<char*>(rgb.data()), static_cast<std::streamsize>(rgb.size()))) {
            throw std::runtime_error(path + " is cut off");
        }
    }
};

struct Wav {
    int32_t rate = 0;
    std::vector<float> samples;
    explicit Wav(const std::string& path) {
        const std::string bytes = read_file(path);
        const auto number = [&](size_t at, int count) {
            uint32_t value = 0;
            for (int i = count; i-- > 0;)
                value = value << 8 | static_cast<uint8_t>(bytes.at(at + static_cast<size_t>(i)));
            return value;
        };
        if (bytes.substr(0, 4) != "RIFF" || bytes.substr(36, 4) != "data" || number(34, 2) != 16) {
            throw std::runtime_error(path + " is no plain WAV");
        }
        rate = static_cast<int32_t>(number(24, 4));
        for (size_t at = 44; at + 1 < bytes.size(); at += 2) {
            samples.push_back(static_cast<float>(static_cast<int16_t>(number(at, 2))) / 32768.0f);
        }
    }
};
