/* A libcuda for machines without a driver: just enough for cuDNN to build plans for the properties of a device that
   isn't there. Loading a kernel's binary succeeds and is remembered by name; whatever would need a device says that
   there is none (100). */
#include <string.h>

enum { kNoDevice = 100, kMostNames = 1 << 20 };

static char binary[1], names[kMostNames];

/* The names of all kernels asked for since the last call, one a line. */
const char* stand_in_kernels(void) {
  static char result[kMostNames];
  strcpy(result, names);
  names[0] = 0;
  return result;
}

int cuInit(unsigned flags) { return (int)(flags & 0); }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuLibraryLoadData(void** library) {
  *library = binary;
  return 0;
}
int cuLibraryUnload(void) { return 0; }
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  *kernel = library;
  if (strlen(names) + strlen(name) + 2 <= kMostNames) strcat(strcat(names, name), "\n");
  return 0;
}

#define NEEDS_A_DEVICE(name) \
  int name(void) { return kNoDevice; }
NEEDS_A_DEVICE(cuDeviceGetCount)
NEEDS_A_DEVICE(cuDeviceGet)
NEEDS_A_DEVICE(cuDeviceGetAttribute)
NEEDS_A_DEVICE(cuDevicePrimaryCtxRetain)
NEEDS_A_DEVICE(cuDevicePrimaryCtxRelease)
NEEDS_A_DEVICE(cuDevicePrimaryCtxReset)
NEEDS_A_DEVICE(cuCtxGetDevice)
NEEDS_A_DEVICE(cuCtxGetCurrent)
NEEDS_A_DEVICE(cuCtxGetLimit)
NEEDS_A_DEVICE(cuCtxPopCurrent)
NEEDS_A_DEVICE(cuCtxPushCurrent)
NEEDS_A_DEVICE(cuStreamGetCtx)
NEEDS_A_DEVICE(cuStreamSynchronize)
NEEDS_A_DEVICE(cuGetErrorName)
NEEDS_A_DEVICE(cuGetErrorString)
NEEDS_A_DEVICE(cuGetExportTable)
NEEDS_A_DEVICE(cuGetProcAddress_v2)
NEEDS_A_DEVICE(cuLinkCreate)
NEEDS_A_DEVICE(cuLinkCreate_v2)
NEEDS_A_DEVICE(cuLinkAddData)
NEEDS_A_DEVICE(cuLinkAddData_v2)
NEEDS_A_DEVICE(cuLinkAddFile_v2)
NEEDS_A_DEVICE(cuLinkComplete)
NEEDS_A_DEVICE(cuLinkDestroy)
NEEDS_A_DEVICE(cuLaunchKernel)
NEEDS_A_DEVICE(cuLaunchKernelEx)
NEEDS_A_DEVICE(cuLaunchCooperativeKernel)
NEEDS_A_DEVICE(cuLibraryLoadFromFile)
NEEDS_A_DEVICE(cuKernelSetAttribute)
NEEDS_A_DEVICE(cuKernelGetAttribute)
NEEDS_A_DEVICE(cuOccupancyMaxPotentialClusterSize)
NEEDS_A_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NEEDS_A_DEVICE(cuTensorMapEncodeTiled)
NEEDS_A_DEVICE(cuModuleUnload)
NEEDS_A_DEVICE(cuModuleLoadFatBinary)
NEEDS_A_DEVICE(cuModuleLoadDataEx)
NEEDS_A_DEVICE(cuModuleLoadData)
NEEDS_A_DEVICE(cuModuleGetGlobal_v2)
NEEDS_A_DEVICE(cuModuleGetFunction)
NEEDS_A_DEVICE(cuMemcpyDtoH_v2)
NEEDS_A_DEVICE(cuFuncSetAttribute)
NEEDS_A_DEVICE(cuFuncGetAttribute)
