// The vocabulary of the instruction set that is compiled for: VITRAL_ISA_<NAME> says which.
#pragma once
#if defined(VITRAL_ISA_SCALAR)
#define VITRAL_ISA scalar
#include "scalar.h"
#elif defined(VITRAL_ISA_AVX2)
#define VITRAL_ISA avx2
#include "avx2.h"
#elif defined(VITRAL_ISA_AVX512VNNI)
#define VITRAL_ISA avx512vnni
#include "avx512vnni.h"
#elif defined(VITRAL_ISA_AMX)
#define VITRAL_ISA amx
#include "amx.h"
#elif defined(VITRAL_ISA_NEON)
#define VITRAL_ISA neon
#include "neon.h"
#elif defined(VITRAL_ISA_I8MM)
#define VITRAL_ISA i8mm
#include "neon.h"
#endif
