// Every collective of tests/parallel on device memory, over NCCL as the stand-in runs it.
#define DROPCYCLE_TEST_ON_GPU
#include "../parallel/collectives_test.cpp"
