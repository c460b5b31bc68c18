# Installs the libraries, their headers, the tycho command and the package files for find_package(Tycho).
# Two export sets, so that a program that only reads traces needs no LibTorch.
include(CMakePackageConfigHelpers)

set(package_directory "${CMAKE_INSTALL_LIBDIR}/cmake/Tycho")
set(TYCHO_INSTALLED_COMPONENTS "")
set(export_sets "")
foreach(component IN ITEMS proto trace analyzer probes plugin)
  if(NOT TARGET Tycho::${component})
    continue()
  endif()
  get_target_property(target Tycho::${component} ALIASED_TARGET)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${component})
  if(component MATCHES "^(probes|plugin)$")
    set(export_set TychoPluginTargets)
  else()
    set(export_set TychoTargets)
  endif()
  list(APPEND export_sets ${export_set})
  list(APPEND TYCHO_INSTALLED_COMPONENTS ${component})
  install(TARGETS ${target} EXPORT ${export_set}
          LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
          ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
          INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  if(EXISTS "${PROJECT_SOURCE_DIR}/${component}/include")
    install(DIRECTORY "${PROJECT_SOURCE_DIR}/${component}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  endif()
endforeach()
install(DIRECTORY "${PROJECT_BINARY_DIR}/proto/generated/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.pb.h")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/proto/tycho" DESTINATION "${CMAKE_INSTALL_DATADIR}/tycho/proto"
        FILES_MATCHING PATTERN "*.proto")
if(TARGET tycho_command)
  install(TARGETS tycho_command RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

list(REMOVE_DUPLICATES export_sets)
foreach(export_set IN LISTS export_sets)
  install(EXPORT ${export_set} NAMESPACE Tycho:: DESTINATION "${package_directory}")
endforeach()
configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/TychoConfig.cmake.in" "${PROJECT_BINARY_DIR}/TychoConfig.cmake"
  INSTALL_DESTINATION "${package_directory}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/TychoConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/TychoConfig.cmake" "${PROJECT_BINARY_DIR}/TychoConfigVersion.cmake"
        DESTINATION "${package_directory}")
