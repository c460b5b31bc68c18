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
    target_link_options(${target} PUBLIC -fsanitize=${TYCHO_SANITIZE})
  endif()
endfunction()

# at::parallel_for is a template that runs in one thread where it is compiled without OpenMP. LibTorch's own threads are
# GNU's; another compiler's OpenMP library would add a second set of them.
function(tycho_use_openmp target)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    find_package(OpenMP REQUIRED)
    target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  endif()
endfunction()

# tycho_add_test(<name> LABELS <label...> SOURCES <file...> LIBRARIES <target...> [TIMEOUT <s>] [SHARDS <n>] [ALL_CORES]
#                [GPU <cases...>])
# One executable, one CTest entry: LibTorch takes long to load, so the cases of a file share a process. With SHARDS, so
# many entries with a part of the cases each. An entry uses one core, so that others can run beside it; with ALL_CORES,
# LibTorch's threads use all, and it runs alone. Cases under GPU run once more, on CUDA tensors, as <name>_gpu, where
# LibTorch is built for CUDA; skipped where there is no GPU.
function(tycho_add_test name)
  if(NOT TYCHO_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "ALL_CORES" "TIMEOUT;SHARDS" "LABELS;SOURCES;LIBRARIES;GPU" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  tycho_configure_target(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LIBRARIES} GTest::gtest GTest::gmock GTest::gtest_main)
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
