// Which instruction sets this machine offers, and the table of each.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace vitral {

struct IsaState {
  std::string name;
  bool available;
  std::string reason;  // why not, or what it needs
};

// From the slowest to the fastest.
const std::vector<IsaState>& instruction_sets();

// The table of an instruction set by name, "" for the fastest available; std::invalid_argument
// where it does not exist here.
const Kernels& kernels_for(const std::string& name);

}  // namespace vitral
