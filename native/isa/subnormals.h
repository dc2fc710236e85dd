// Work during which subnormal numbers count as zero, going in and coming out: what the tile unit does with
// bfloat16, whatever the mode. The products that need it must be in functions that are not inlined.
#pragma once
#include <cstdint>

namespace vitral::VITRAL_ISA {

template <class Work>
inline void without_subnormals(Work work) {
#if defined(__x86_64__)
  const unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  work();
  __builtin_ia32_ldmxcsr(mode);
#elif defined(__aarch64__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  asm volatile("msr fpcr, %0" ::"r"(mode | uint64_t{1} << 24));
  work();
  asm volatile("msr fpcr, %0" ::"r"(mode));
#else
#error "say here how subnormal numbers are made zero on this machine"
#endif
}

}  // namespace vitral::VITRAL_ISA
