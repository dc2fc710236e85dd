// AVX-512 with tiles for products of many rows: 16 rows of activations by 16 of weights at once.
#pragma once
#include "avx512vnni.h"
#define VITRAL_TILES 1
