# Settings that every target of the project shares, applied per target: no global flags.
function(tycho_configure_target target)
  target_compile_features(${target} PUBLIC cxx_std_17)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${TYCHO_WERROR}>:-Werror>)
  if(TYCHO_BUILD_FUZZERS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
    target_link_options(${target} PUBLIC -fsanitize=fuzzer-no-link)
  endif()
  if(TYCHO_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${TYCHO_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND TYCHO_SANITIZE MATCHES "undefined")
      # Its check of virtual calls wants type information that LibTorch hides.
      target_compile_options(${target} PRIVATE -fno-sanitize=vptr)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${TYCHO_SANITIZE})
  endif()
endfunction()

# tycho_sources(<variable> <folder...>): the sources in these folders, tests excepted. A new file is found by the next build.
function(tycho_sources variable)
  set(sources "")
  foreach(folder IN LISTS ARGN)
    file(GLOB found CONFIGURE_DEPENDS "${folder}/*.cpp")
    list(APPEND sources ${found})
  endforeach()
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  set(${variable} "${sources}" PARENT_SCOPE)
endfunction()

# tycho_test_sources(<variable> <folder...>): the tests in these folders.
function(tycho_test_sources variable)
  set(sources "")
  foreach(folder IN LISTS ARGN)
    file(GLOB found CONFIGURE_DEPENDS "${folder}/*_test.cpp")
    list(APPEND sources ${found})
  endforeach()
  set(${variable} "${sources}" PARENT_SCOPE)
endfunction()

# For each target whose sources include LibTorch's headers. Its RecordFunction has another layout without NDEBUG than in
# the release build that packages ship. Clang's targets share one precompiled header of all of LibTorch: a small source
# takes 7 s instead of 26 s. GCC's would take 560 MB and save nothing; its libraries have one of the tensors only, and are
# compiled a dozen sources at a time (TYCHO_UNITY_BUILD).
function(tycho_use_torch target)
  target_compile_definitions(${target} PRIVATE NDEBUG)
  get_target_property(type ${target} TYPE)
  if(NOT type STREQUAL "EXECUTABLE")
    set_target_properties(${target} PROPERTIES UNITY_BUILD ${TYCHO_UNITY_BUILD} UNITY_BUILD_BATCH_SIZE 12)
    if(TYCHO_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # It takes an included source for a header.
      target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
    endif()
  endif()
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    tycho_torch_headers()
    target_compile_options(${target} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
    target_precompile_headers(${target} REUSE_FROM tycho_torch_headers)
  elseif(NOT type STREQUAL "EXECUTABLE")
    target_precompile_headers(${target} PRIVATE <ATen/ATen.h>)
  endif()
endfunction()

function(tycho_torch_headers)
  if(TARGET tycho_torch_headers)
    return()
  endif()
  set(source "${PROJECT_BINARY_DIR}/torch_headers.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "// Only to precompile LibTorch's headers.\n")
  add_library(tycho_torch_headers OBJECT "${source}")
  tycho_configure_target(tycho_torch_headers)
  target_compile_definitions(tycho_torch_headers PRIVATE NDEBUG)
  target_compile_options(tycho_torch_headers PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  target_precompile_headers(tycho_torch_headers PRIVATE <torch/torch.h>)
  target_link_libraries(tycho_torch_headers PRIVATE torch)
endfunction()

# at::parallel_for is a template that runs in one thread where it is compiled without OpenMP. LibTorch's own threads are
# GNU's; another compiler's OpenMP library would add a second set of them.
function(tycho_use_openmp target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    find_package(OpenMP REQUIRED)
    target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  endif()
endfunction()

# tycho_add_test(<name> LABELS <label...> SOURCES <file...> LIBRARIES <target...> [INCLUDES <folder...>] [TIMEOUT <s>]
#                [SHARDS <n>] [ALL_CORES] [GPU <cases...>])
# One executable, one CTest entry: LibTorch takes long to load, so the cases of a folder share a process. With SHARDS, so
# many entries with a part of the cases each. An entry uses one core, so that others can run beside it; with ALL_CORES,
# LibTorch's threads use all, and it runs alone. Cases under GPU run once more, on CUDA tensors, as <name>_gpu, where
# LibTorch is built for CUDA; skipped where there is no GPU.
function(tycho_add_test name)
  if(NOT TYCHO_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "ALL_CORES" "TIMEOUT;SHARDS" "LABELS;SOURCES;LIBRARIES;INCLUDES;GPU" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  tycho_configure_target(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LIBRARIES} GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${ARG_INCLUDES})
  if("Tycho::plugin" IN_LIST ARG_LIBRARIES)
    tycho_use_torch(${name})
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(ARG_ALL_CORES)
    set(cores RUN_SERIAL ON)
  else()
    set(cores ENVIRONMENT OMP_NUM_THREADS=1)
  endif()
  if(ARG_SHARDS)
    math(EXPR last "${ARG_SHARDS} - 1")
    foreach(shard RANGE ${last})
      add_test(NAME ${name}_${shard} COMMAND ${name})
      set_tests_properties(${name}_${shard} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
        ENVIRONMENT "OMP_NUM_THREADS=1;GTEST_TOTAL_SHARDS=${ARG_SHARDS};GTEST_SHARD_INDEX=${shard}")
    endforeach()
  else()
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} ${cores})
  endif()
  if(ARG_GPU AND TARGET torch_cuda)
    list(JOIN ARG_GPU ":" cases)
    add_test(NAME ${name}_gpu COMMAND ${name} --gtest_filter=${cases})
    set_tests_properties(${name}_gpu PROPERTIES
      LABELS gpu TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT TYCHO_TEST_DEVICE=cuda
      SKIP_REGULAR_EXPRESSION "there is no CUDA device")
  endif()
endfunction()
