# The module for mlx-cuda: the same ops with CUDA's eval_gpu and the kernels, compiled and embedded.
# It can be imported only where that libmlx is loaded, so it stands beside _native.
find_program(MLXRT_NVCC nvcc REQUIRED HINTS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
find_path(MLXRT_CUDA_INCLUDE cuda.h REQUIRED HINTS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES include)
set(MLXRT_CUDA_TARGETS "90;80-virtual" CACHE STRING
  "Machine code for these architectures; N-virtual: PTX, which the driver compiles for newer ones")
enable_language(ASM)

set(code "")
foreach(target ${MLXRT_CUDA_TARGETS})
  string(REPLACE "-virtual" "" number ${target})
  if(target MATCHES "virtual")
    list(APPEND code -gencode arch=compute_${number},code=compute_${number})
  else()
    list(APPEND code -gencode arch=compute_${number},code=sm_${number})
  endif()
endforeach()

add_executable(generate_kernels cuda/generate.cpp kernels/gpu/launch.cpp)
target_include_directories(generate_kernels PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
set(gpu_folder "${CMAKE_CURRENT_SOURCE_DIR}/kernels/gpu")
file(GLOB gpu_texts CONFIGURE_DEPENDS "${gpu_folder}/*.h")
set(fatbin_files "")
set(fatbin_assembly ".section .rodata\n")
set(fatbin_declarations "")
set(fatbin_entries "")

# Compiles one text into a fatbin and embeds it as `name`.
macro(add_fatbin name text)
  set(fatbin "${CMAKE_CURRENT_BINARY_DIR}/${name}.fatbin")
  add_custom_command(OUTPUT "${fatbin}" DEPENDS "${text}" ${gpu_texts} VERBATIM
    COMMAND "${MLXRT_NVCC}" -std=c++17 -O3 -fatbin -Xfatbin -compress-all ${code}
      -I "${gpu_folder}" "${text}" -o "${fatbin}")
  list(APPEND fatbin_files "${fatbin}")
  string(APPEND fatbin_assembly
    ".balign 64\n.global mlxrt_${name}\n.hidden mlxrt_${name}\nmlxrt_${name}:\n.incbin \"${fatbin}\"\n")
  string(APPEND fatbin_declarations "extern \"C\" const unsigned char mlxrt_${name}[];\n")
  string(APPEND fatbin_entries "    {\"${name}\", mlxrt_${name}},\n")
endmacro()

add_fatbin(moving "${CMAKE_CURRENT_SOURCE_DIR}/cuda/moving.cu")
foreach(element 0 1 2)
  add_fatbin(fused_element${element} "${CMAKE_CURRENT_SOURCE_DIR}/cuda/fused_element${element}.cu")
  add_fatbin(sample_element${element} "${CMAKE_CURRENT_SOURCE_DIR}/cuda/sample_element${element}.cu")
  add_fatbin(sample_parts_element${element}
    "${CMAKE_CURRENT_SOURCE_DIR}/cuda/sample_parts_element${element}.cu")
endforeach()
foreach(element 0 1 2)
  foreach(head_dim 64 80 96 112 128 192 256)
    set(name attention_element${element}_head_dim${head_dim})
    set(text "${CMAKE_CURRENT_BINARY_DIR}/${name}.cu")
    add_custom_command(OUTPUT "${text}" DEPENDS generate_kernels VERBATIM
      COMMAND sh -c "\"$0\" \"$1\" \"$2\" > \"$3\"" "$<TARGET_FILE:generate_kernels>"
        ${element} ${head_dim} "${text}")
    add_fatbin(${name} "${text}")
  endforeach()
endforeach()

file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/fatbins.S"
  "${fatbin_assembly}.section .note.GNU-stack,\"\",@progbits\n")
set_source_files_properties("${CMAKE_CURRENT_BINARY_DIR}/fatbins.S" PROPERTIES
  OBJECT_DEPENDS "${fatbin_files}")
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/fatbins.cpp"
  "#include \"cuda/kernel_table.h\"\n\n${fatbin_declarations}\nnamespace mlxrt::cuda {\n\n"
  "const Fatbin fatbins[] = {\n${fatbin_entries}    {nullptr, nullptr},\n};\n\n} // namespace mlxrt::cuda\n")

add_native_module(_native_cuda
  cuda/eval_gpu.cpp cuda/driver.cpp cuda/kernel_table.cpp cuda/memory.cpp cuda/transfer.cpp
  "${CMAKE_CURRENT_BINARY_DIR}/fatbins.cpp" "${CMAKE_CURRENT_BINARY_DIR}/fatbins.S")
target_compile_definitions(_native_cuda PRIVATE MLXRT_HAS_TRANSFERS)
target_include_directories(_native_cuda SYSTEM PRIVATE
  "${MLXRT_CUDA_INCLUDE}" "${CMAKE_CURRENT_SOURCE_DIR}/cuda/shim")
# What only mlx-cuda's libmlx has is found when the module is loaded.
target_link_options(_native_cuda PRIVATE -Wl,--unresolved-symbols=ignore-all)

# Kernels timed without MLX, see bench/README.md; built when one is asked for by name.
add_library(cuda_fatbins OBJECT EXCLUDE_FROM_ALL
  "${CMAKE_CURRENT_BINARY_DIR}/fatbins.cpp" "${CMAKE_CURRENT_BINARY_DIR}/fatbins.S")
target_include_directories(cuda_fatbins PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_include_directories(cuda_fatbins SYSTEM PRIVATE "${MLXRT_CUDA_INCLUDE}")
foreach(program decode_attention sample row_ops)
  set(bench_sources "${CMAKE_CURRENT_SOURCE_DIR}/cuda/bench/${program}.cu"
    "${CMAKE_CURRENT_SOURCE_DIR}/kernels/gpu/launch.cpp")
  add_custom_command(OUTPUT ${program} VERBATIM COMMAND_EXPAND_LISTS
    DEPENDS ${bench_sources} "${CMAKE_CURRENT_SOURCE_DIR}/cuda/bench/timing.h"
      cuda_fatbins "$<TARGET_OBJECTS:cuda_fatbins>"
    COMMAND "${MLXRT_NVCC}" -std=c++20 -O2 ${code} -I "${CMAKE_CURRENT_SOURCE_DIR}"
      -L "${MLXRT_CUDA_INCLUDE}/../lib" ${bench_sources} "$<TARGET_OBJECTS:cuda_fatbins>"
      -o ${program})
  add_custom_target(bench_${program} DEPENDS ${program})
endforeach()
