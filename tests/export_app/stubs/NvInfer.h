// Stand-ins for the part of TensorRT 8.5 to 10 that edgeship_classifier.hpp uses: signatures, and an "engine"
// whose logits are sums of the input with known weights. The plan is "C H W classes uint8".
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>

#include "cuda_runtime_api.h"

namespace nvinfer1 {
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class DataType : std::int32_t { kFLOAT = 0, kUINT8 = 5 };

struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];  // int32_t before TensorRT 10
};

class ILogger {
  public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

struct Plan {
    int sides[3] = {}, classes = 0, pixels = 0;
};

class IExecutionContext {
  public:
    explicit IExecutionContext(Plan plan) : plan_(plan) {}
    bool setInputShape(const char* name, const Dims& dims) noexcept {
        batch_ = dims.d[0];
        return std::string(name) == "images" && dims.nbDims == 4 && dims.d[1] == plan_.sides[0];
    }
    Dims getTensorShape(const char*) const noexcept { return {2, {batch_, plan_.classes}}; }
    bool setTensorAddress(const char* name, void* data) noexcept {
        (std::string(name) == "images" ? input_ : output_) = data;
        return true;
    }
    bool enqueueV3(cudaStream_t) noexcept {
        int count = plan_.sides[0] * plan_.sides[1] * plan_.sides[2];
        for (int k = 0; k < plan_.classes; ++k) {
            double sum = 0;
            for (int i = 0; i < count; ++i) {
                double value = plan_.pixels ? static_cast<std::uint8_t*>(input_)[i] : static_cast<float*>(input_)[i];
                sum += value * ((i * 7 + k * 3) % 11 - 5);
            }
            static_cast<float*>(output_)[k] = float(sum);
        }
        return true;
    }

  private:
    Plan plan_;
    std::int64_t batch_ = 0;
    void *input_ = nullptr, *output_ = nullptr;
};

class ICudaEngine {
  public:
    explicit ICudaEngine(Plan plan) : plan_(plan) {}
    std::int32_t getNbIOTensors() const noexcept { return 2; }
    const char* getIOTensorName(std::int32_t i) const noexcept { return i ? "images" : "logits"; }
    TensorIOMode getTensorIOMode(const char* name) const noexcept {
        return std::string(name) == "images" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    Dims getTensorShape(const char*) const noexcept { return {4, {-1, plan_.sides[0], plan_.sides[1], plan_.sides[2]}}; }
    DataType getTensorDataType(const char*) const noexcept {
        return plan_.pixels ? DataType::kUINT8 : DataType::kFLOAT;
    }
    IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext(plan_); }

  private:
    Plan plan_;
};

class IRuntime {
  public:
    explicit IRuntime(ILogger& log) : log_(log) {}
    ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size) noexcept {
        Plan plan;
        std::string text(static_cast<const char*>(data), size);
        int* s = plan.sides;
        if (std::sscanf(text.c_str(), "%d %d %d %d %d", s, s + 1, s + 2, &plan.classes, &plan.pixels) == 5)
            return new ICudaEngine(plan);
        log_.log(ILogger::Severity::kERROR, "magicTag is wrong");
        return nullptr;
    }

  private:
    ILogger& log_;
};

inline IRuntime* createInferRuntime(ILogger& log) noexcept { return new IRuntime(log); }
}  // namespace nvinfer1
