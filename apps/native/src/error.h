// Errors inside the core: thrown with a status of the C interface, turned into a phirt_error at its border.
#pragma once

#include <stdexcept>
#include <string>

#include "phirt.h"

namespace phirt {

// One line: what is wrong, what would be accepted, what to do.
struct Error : std::runtime_error {
    Error(phirt_status status, const std::string& message) : std::runtime_error(message), status(status) {}
    phirt_status status;
};

[[noreturn]] inline void refuse_bundle(const std::string& message) {
    throw Error(PHIRT_ERROR_BUNDLE, message);
}
[[noreturn]] inline void refuse_media(const std::string& message) { throw Error(PHIRT_ERROR_MEDIA, message); }
[[noreturn]] inline void refuse_argument(const std::string& message) {
    throw Error(PHIRT_ERROR_ARGUMENT, message);
}

}  // namespace phirt
