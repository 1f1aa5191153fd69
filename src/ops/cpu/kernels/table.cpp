#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

Kernels kernels() {
  Kernels table{};
#define DROPCYCLE_KERNEL_ENTRY(name, arguments) table.name = &DROPCYCLE_ISA::name;
  DROPCYCLE_KERNELS(DROPCYCLE_KERNEL_ENTRY)
#undef DROPCYCLE_KERNEL_ENTRY
  return table;
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
