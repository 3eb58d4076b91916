// Which instruction sets this CPU and its system have, and the best kernels for them.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "matrix.h"

#if defined(__x86_64__) || defined(_M_X64)
#define PHIRT_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#define PHIRT_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define PHIRT_ARM 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace phirt {

extern const KernelSet kGeneric;
#if defined(PHIRT_X86)
extern const KernelSet kAvx2, kAvxVnni, kAvx512Vnni;
#if defined(PHIRT_AMX)
extern const KernelSet kAmxInt8;
#endif
#elif defined(PHIRT_ARM)
extern const KernelSet kNeonDotprod, kNeonI8mm;
#endif

namespace {

#if defined(PHIRT_X86)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(values[0]), static_cast<uint32_t>(values[1]), static_cast<uint32_t>(values[2]),
       static_cast<uint32_t>(values[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

// The states of registers that the system saves: without them an instruction set cannot be used.
uint64_t saved_states() {
  if ((cpuid(1, 0).c & (1u << 27)) == 0) return 0;
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
#endif
}

bool has(uint32_t word, std::initializer_list<int> bits) {
  for (int bit : bits) {
    if ((word & (1u << bit)) == 0) return false;
  }
  return true;
}

bool has_avx2() {
  // SSE, AVX; FMA, F16C; AVX2.
  return (saved_states() & 0x6) == 0x6 && has(cpuid(1, 0).c, {12, 28, 29}) && has(cpuid(7, 0).b, {5});
}

bool has_avx_vnni() { return has_avx2() && has(cpuid(7, 1).a, {4}); }

bool has_avx512_vnni() {
  // F, DQ, BW, VL; VNNI.
  return has_avx2() && (saved_states() & 0xe6) == 0xe6 && has(cpuid(7, 0).b, {16, 17, 30, 31}) &&
         has(cpuid(7, 0).c, {11});
}

#if defined(PHIRT_AMX)
// The state of tiles is large: Linux (5.16 or newer) saves it only for processes that have asked.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_int8() {
  constexpr uint64_t kTiles = uint64_t{3} << 17;
  // AMX-TILE, AMX-INT8.
  return has_avx512_vnni() && (saved_states() & kTiles) == kTiles && has(cpuid(7, 0).d, {24, 25}) && may_use_tiles();
}
#endif

#elif defined(PHIRT_ARM)

bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & (1u << 20)) != 0;  // HWCAP_ASIMDDP
#elif defined(_WIN32)
  return IsProcessorFeaturePresent(43) != 0;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#elif defined(__APPLE__)
  return true;  // every Apple processor of this architecture that runs macOS
#else
  return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  return has_dotprod() && (getauxval(AT_HWCAP2) & (1u << 13)) != 0;  // HWCAP2_I8MM
#elif defined(_WIN32)
  return has_dotprod() && IsProcessorFeaturePresent(66) != 0;  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
#elif defined(__APPLE__)
  int is_there = 0;
  size_t size = sizeof is_there;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &is_there, &size, nullptr, 0) == 0 && is_there != 0;
#else
  return false;
#endif
}

#endif

const KernelSet* const* available() {
  static const KernelSet* sets[8] = {};
  static const bool once = [] {
    int count = 0;
#if defined(PHIRT_X86)
#if defined(PHIRT_AMX)
    if (has_amx_int8()) sets[count++] = &kAmxInt8;
#endif
    if (has_avx512_vnni()) sets[count++] = &kAvx512Vnni;
    if (has_avx_vnni()) sets[count++] = &kAvxVnni;
    if (has_avx2()) sets[count++] = &kAvx2;
#elif defined(PHIRT_ARM)
    if (has_i8mm()) sets[count++] = &kNeonI8mm;
    if (has_dotprod()) sets[count++] = &kNeonDotprod;
#endif
    sets[count] = &kGeneric;
    return true;
  }();
  static_cast<void>(once);
  return sets;
}

}  // namespace

const KernelSet* kernels_named(const char* name) {
  for (const KernelSet* const* set = available(); *set != nullptr; ++set) {
    if (std::strcmp((*set)->name, name) == 0) return *set;
  }
  return nullptr;
}

const KernelSet& best_kernels() {
  if (const char* name = std::getenv("PHIRT_KERNELS")) {
    if (const KernelSet* named = kernels_named(name)) return *named;
  }
  return *available()[0];
}

}  // namespace phirt
