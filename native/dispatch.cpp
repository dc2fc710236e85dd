#include "dispatch.h"

#include <stdexcept>

#include "back.h"

#if defined(VITRAL_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace vitral {
#define VITRAL_TABLES(isa) namespace isa { void fill_table(Kernels&); BackBlock back_block_of(Type); }
VITRAL_TABLES(scalar)
#if defined(VITRAL_HAS_AMX)
VITRAL_TABLES(amx)
#endif
#if defined(__x86_64__)
VITRAL_TABLES(avx2)
VITRAL_TABLES(avx512vnni)
#elif defined(__aarch64__)
VITRAL_TABLES(neon)
VITRAL_TABLES(i8mm)
#endif
#undef VITRAL_TABLES
namespace {

std::string missing(const char* const* names, const bool* has, int n) {
  std::string text;
  for (int i = 0; i < n; ++i)
    if (!has[i]) text += (text.empty() ? "this CPU lacks " : ", ") + std::string(names[i]);
  return text;
}

#if defined(VITRAL_HAS_AMX)
// Linux lends the tile registers to a process that asks for them (ARCH_REQ_XCOMP_PERM, XTILEDATA).
IsaState detect_amx(bool avx512) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  const char* names[] = {"AVX-512 VNNI", "AMX-TILE", "AMX-INT8", "AMX-BF16"};
  const bool has[] = {avx512, (d >> 24 & 1) != 0, (d >> 25 & 1) != 0, (d >> 22 & 1) != 0};
  const std::string lack = missing(names, has, 4);
  if (!lack.empty()) return {"amx", false, lack};
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0)
    return {"amx", false, std::string("the operating system refuses the tile registers: ") + std::strerror(errno)};
  return {"amx", true, "AVX-512 VNNI, AMX-TILE, AMX-INT8, AMX-BF16"};
}
#endif

#if defined(__aarch64__)
#if defined(__linux__)
// Bits of Linux's arch/arm64/include/uapi/asm/hwcap.h; older C libraries lack the second name.
bool has_dot_products() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }    // HWCAP_ASIMDDP
bool has_byte_matrices() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }  // HWCAP2_I8MM
#elif defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dot_products() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_byte_matrices() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
#error "say here how this operating system tells which instructions the CPU has"
#endif
#endif

std::vector<IsaState> detect() {
  std::vector<IsaState> found{{"scalar", true, "runs everywhere"}};
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks the operating system too (XGETBV)
  const char* names2[] = {"AVX2", "FMA", "F16C"};
  const bool has2[] = {__builtin_cpu_supports("avx2") != 0, __builtin_cpu_supports("fma") != 0, __builtin_cpu_supports("f16c") != 0};
  std::string lack = missing(names2, has2, 3);
  found.push_back({"avx2", lack.empty(), lack.empty() ? "AVX2, FMA, F16C" : lack});
  const char* names5[] = {"AVX2", "AVX512F", "AVX512BW", "AVX512VL", "AVX512DQ", "AVX512_VNNI"};
  const bool has5[] = {lack.empty(),
                       __builtin_cpu_supports("avx512f") != 0,
                       __builtin_cpu_supports("avx512bw") != 0,
                       __builtin_cpu_supports("avx512vl") != 0,
                       __builtin_cpu_supports("avx512dq") != 0,
                       __builtin_cpu_supports("avx512vnni") != 0};
  lack = missing(names5, has5, 6);
  found.push_back({"avx512vnni", lack.empty(), lack.empty() ? "AVX-512 F, BW, VL, DQ, VNNI" : lack});
#if defined(VITRAL_HAS_AMX)
  found.push_back(detect_amx(lack.empty()));
#endif
#elif defined(__aarch64__)
  const char* names[] = {"DotProd", "I8MM"};
  const bool has[] = {has_dot_products(), has_byte_matrices()};
  std::string lack = missing(names, has, 1);
  found.push_back({"neon", lack.empty(), lack.empty() ? "NEON, DotProd" : lack});
  lack = missing(names, has, 2);
  found.push_back({"i8mm", lack.empty(), lack.empty() ? "NEON, DotProd, I8MM" : lack});
#endif
  return found;
}

}  // namespace

const std::vector<IsaState>& instruction_sets() {
  static const std::vector<IsaState> found = detect();
  return found;
}

const Kernels& kernels_for(const std::string& name) {
  static const std::vector<Kernels> tables = [] {
    std::vector<Kernels> made(instruction_sets().size());
    for (size_t i = 0; i < made.size(); ++i) {
      // Filling a table is itself code of its instruction set: elsewhere an illegal instruction.
      if (!instruction_sets()[i].available) continue;
      if (instruction_sets()[i].name == "scalar") scalar::fill_table(made[i]);
#if defined(__x86_64__)
      if (instruction_sets()[i].name == "avx2") avx2::fill_table(made[i]);
      if (instruction_sets()[i].name == "avx512vnni") avx512vnni::fill_table(made[i]);
#elif defined(__aarch64__)
      if (instruction_sets()[i].name == "neon") neon::fill_table(made[i]);
      if (instruction_sets()[i].name == "i8mm") i8mm::fill_table(made[i]);
#endif
#if defined(VITRAL_HAS_AMX)
      if (instruction_sets()[i].name == "amx") amx::fill_table(made[i]);
#endif
    }
    return made;
  }();
  const std::vector<IsaState>& sets = instruction_sets();
  std::string allowed;
  for (size_t i = sets.size(); i-- > 0;) {
    if (sets[i].available && (name.empty() || sets[i].name == name)) return tables[i];
    if (sets[i].available) allowed = sets[i].name + (allowed.empty() ? "" : ", ") + allowed;
  }
  for (const IsaState& s : sets)
    if (s.name == name) throw std::invalid_argument("instruction set " + name + " cannot be used: " + s.reason + "; allowed here: " + allowed);
  throw std::invalid_argument("instruction set '" + name + "' does not exist here; allowed: " + allowed);
}

BackBlock back_block_for(const std::string& isa, Type type) {
#if defined(VITRAL_HAS_AMX)
  if (isa == "amx") return amx::back_block_of(type);
#endif
#if defined(__x86_64__)
  if (isa == "avx2") return avx2::back_block_of(type);
  if (isa == "avx512vnni") return avx512vnni::back_block_of(type);
#elif defined(__aarch64__)
  if (isa == "neon") return neon::back_block_of(type);
  if (isa == "i8mm") return i8mm::back_block_of(type);
#endif
  return scalar::back_block_of(type);
}

}  // namespace vitral
