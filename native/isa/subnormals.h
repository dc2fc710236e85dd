// Work during which subnormal numbers count as zero, going in and coming out: what the tile unit does with
// bfloat16, whatever the mode. The products that need it must be in functions that are not inlined.
#pragma once
#include <cstdint>

namespace vitral::VITRAL_ISA {

template <bool value>
struct Careful { static constexpr bool careful = value; };

// Calls work(how). x86 and the law round first: what becomes 2^-126 is no subnormal number. ARM makes it zero, but
// remembers that it made some result zero (FPSR, bit 3); then the work is done again, carefully.
template <class Work>
inline void without_subnormals(Work work) {
#if defined(__x86_64__)
  const unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  work(Careful<false>{});
  __builtin_ia32_ldmxcsr(mode);
#elif defined(__aarch64__)
  uint64_t mode, state;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  asm volatile("mrs %0, fpsr" : "=r"(state));
  asm volatile("msr fpsr, %0" ::"r"(state & ~(uint64_t{1} << 3)));
  asm volatile("msr fpcr, %0" ::"r"(mode | uint64_t{1} << 24) : "memory");
  work(Careful<false>{});
  asm volatile("mrs %0, fpsr" : "=r"(state)::"memory");
  if (state >> 3 & 1) work(Careful<true>{});
  asm volatile("msr fpcr, %0" ::"r"(mode) : "memory");
#else
#error "say here how subnormal numbers are made zero on this machine"
#endif
}

}  // namespace vitral::VITRAL_ISA
