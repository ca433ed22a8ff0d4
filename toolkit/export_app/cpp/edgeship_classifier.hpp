// Classify images with an engine of edgeship in C++17: the preprocessing of the calibration, bit for bit.
//
//   edgeship::Classifier classifier("model");                       // a folder with an engine and model.json
//   auto result = classifier({pixels, height, width, edgeship::Color::bgr});  // decoded uint8, H x W x 3
//   std::cout << result.top(1)[0].label;
//
// Define EDGESHIP_OPENVINO (model.xml) or EDGESHIP_TENSORRT (model.plan, TensorRT 8.5 and newer) before the
// include. Every error is a std::runtime_error. One object is for one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <locale>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef EDGESHIP_OPENVINO
#include <openvino/openvino.hpp>
#endif
#ifdef EDGESHIP_TENSORRT
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#endif

namespace edgeship {

enum class Color { rgb, bgr, grey };

// A decoded image; `stride` is the distance of two rows in bytes, 0: rows follow each other.
struct Image {
    const std::uint8_t* data;
    int height, width;
    Color color = Color::rgb;
    std::size_t stride = 0;
};

struct Prediction {
    int index;
    std::string label;
    float probability;
};

struct Result {
    std::vector<float> logits, probabilities;
    std::vector<std::string> labels;

    int index() const { return int(std::max_element(logits.begin(), logits.end()) - logits.begin()); }

    // The most probable classes, best first.
    std::vector<Prediction> top(std::size_t count = 5) const {
        std::vector<int> order(logits.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
        std::vector<Prediction> best;
        for (int i : order) {
            if (best.size() == count) break;
            best.push_back({i, labels[i], probabilities[i]});
        }
        return best;
    }
};

namespace detail {

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

inline std::string read_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::ostringstream content;
    if (!stream || !(content << stream.rdbuf())) fail("cannot read " + path);
    return content.str();
}

// The part of JSON that model.json needs.
struct Json {
    enum Kind { null, number, text, list, object } kind = null;
    double value = 0;
    std::string string;
    std::vector<Json> items;
    std::map<std::string, Json> members;

    const Json& at(const std::string& key) const {
        auto found = members.find(key);
        if (found == members.end()) fail("model.json has no field " + key);
        return found->second;
    }
    double as_number() const { return kind == number ? value : (fail("model.json: a number is expected"), 0.0); }
    const std::string& as_text() const {
        if (kind != text) fail("model.json: a string is expected");
        return string;
    }
    const std::vector<Json>& as_list() const {
        if (kind != list) fail("model.json: a list is expected");
        return items;
    }
    std::vector<float> as_floats() const {
        std::vector<float> values;
        for (const auto& item : as_list()) values.push_back(float(item.as_number()));
        return values;
    }
};

class JsonReader {
  public:
    explicit JsonReader(std::string source) : source_(std::move(source)) {}

    Json read() {
        Json value = any(0);
        if (next() != '\0') bad();
        return value;
    }

  private:
    [[noreturn]] void bad() const { fail("model.json is damaged at byte " + std::to_string(place_)); }

    char next() {
        while (place_ < source_.size() && std::strchr(" \t\r\n", source_[place_])) ++place_;
        return place_ < source_.size() ? source_[place_] : '\0';
    }

    bool take(char expected) {
        if (next() != expected) return false;
        ++place_;
        return true;
    }

    Json any(int depth) {
        if (depth > 64) bad();
        Json value;
        if (take('{')) {
            value.kind = Json::object;
            if (take('}')) return value;
            do {
                if (next() != '"') bad();
                std::string key = string();
                if (!take(':')) bad();
                value.members[key] = any(depth + 1);
            } while (take(','));
            if (!take('}')) bad();
        } else if (take('[')) {
            value.kind = Json::list;
            if (take(']')) return value;
            do value.items.push_back(any(depth + 1));
            while (take(','));
            if (!take(']')) bad();
        } else if (next() == '"') {
            value.kind = Json::text;
            value.string = string();
        } else if (word("true") || word("false") || word("null")) {
        } else {
            std::size_t end = source_.find_first_not_of("+-.0123456789eE", place_);
            std::istringstream digits(source_.substr(place_, end - place_));
            digits.imbue(std::locale::classic());
            if (!(digits >> value.value) || digits.peek() != std::char_traits<char>::eof()) bad();
            value.kind = Json::number;
            place_ = std::min(end, source_.size());
        }
        return value;
    }

    bool word(const char* text) {
        if (source_.compare(place_, std::strlen(text), text) != 0) return false;
        place_ += std::strlen(text);
        return true;
    }

    std::string string() {
        std::string text;
        for (++place_; place_ < source_.size() && source_[place_] != '"'; ++place_) {
            char letter = source_[place_];
            if (letter != '\\') {
                text += letter;
                continue;
            }
            if (++place_ == source_.size()) bad();
            const char* plain = std::strchr("\"\"\\\\//b\bf\fn\nr\rt\t", source_[place_]);
            if (source_[place_] == 'u') {
                append(text, code_point());
            } else if (plain) {
                text += plain[1];
            } else {
                bad();
            }
        }
        if (place_ >= source_.size()) bad();
        ++place_;
        return text;
    }

    unsigned unit() {  // of UTF-16, at \uXXXX; leaves the place at its last digit
        if (place_ + 4 >= source_.size()) bad();
        std::string digits = source_.substr(place_ + 1, 4);
        if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) bad();
        place_ += 4;
        return unsigned(std::stoul(digits, nullptr, 16));
    }

    unsigned code_point() {
        unsigned first = unit();
        if (first < 0xD800 || first > 0xDBFF) return first;
        if (source_.compare(place_ + 1, 2, "\\u") != 0) bad();
        place_ += 2;
        return 0x10000 + ((first - 0xD800) << 10) + (unit() - 0xDC00);
    }

    static void append(std::string& text, unsigned code) {  // as UTF-8
        if (code < 0x80) {
            text += char(code);
        } else if (code < 0x800) {
            text += char(0xC0 | code >> 6);
            text += char(0x80 | (code & 63));
        } else {
            if (code < 0x10000) {
                text += char(0xE0 | code >> 12);
            } else {
                text += char(0xF0 | code >> 18);
                text += char(0x80 | (code >> 12 & 63));
            }
            text += char(0x80 | (code >> 6 & 63));
            text += char(0x80 | (code & 63));
        }
    }

    std::string source_;
    std::size_t place_ = 0;
};

// Pixels, channels last.
struct Pixels {
    int height = 0, width = 0, channels = 0;
    std::vector<std::uint8_t> data;

    Pixels(int rows, int columns, int depth)
        : height(rows), width(columns), channels(depth), data(std::size_t(rows) * columns * depth) {}
};

// An image with 3 channels, RGB, or with 1 of luma (ITU-R 601-2 in 16 bits, as Pillow rounds it).
inline Pixels with_channels(const Image& image, int channels) {
    if (!image.data || image.height < 1 || image.width < 1) fail("the image is empty");
    std::size_t depth = image.color == Color::grey ? 1 : 3, row = depth * image.width;
    std::size_t stride = image.stride ? image.stride : row;
    if (stride < row) fail("a stride of " + std::to_string(stride) + " bytes, a row has " + std::to_string(row));
    Pixels out(image.height, image.width, channels);
    auto target = out.data.begin();
    for (int y = 0; y < image.height; ++y) {
        const std::uint8_t* from = image.data + y * stride;
        for (int x = 0; x < image.width; ++x, from += depth) {
            if (depth == 1) {
                target = std::fill_n(target, channels, from[0]);
                continue;
            }
            int first = image.color == Color::bgr ? 2 : 0;
            std::uint8_t r = from[first], g = from[1], b = from[2 - first];
            if (channels == 1) {
                *target++ = std::uint8_t((r * 19595u + g * 38470u + b * 7471u + 0x8000u) >> 16);
            } else {
                *target++ = r, *target++ = g, *target++ = b;
            }
        }
    }
    return out;
}

constexpr int fixed_bits = 32 - 8 - 2;  // of a coefficient, as in Pillow's Resample.c
constexpr double pi = 3.14159265358979323846;

inline double kernel(const std::string& name, double x) {
    if (name == "lanczos") {
        auto sinc = [](double at) { return at == 0.0 ? 1.0 : std::sin(at * pi) / (at * pi); };
        return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    }
    x = std::fabs(x);
    if (name == "bilinear") return x < 1.0 ? 1.0 - x : 0.0;
    constexpr double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// Resize the rows (axis 0) or the columns (axis 1) by a filter of Pillow, rounded to uint8.
inline Pixels resize_axis(const Pixels& image, int axis, int size, const std::string& name) {
    int old = axis ? image.width : image.height;
    double scale = double(old) / size, filter_scale = std::max(scale, 1.0);
    double support = (name == "bilinear" ? 1.0 : name == "bicubic" ? 2.0 : 3.0) * filter_scale;
    Pixels out(axis ? image.height : size, axis ? size : image.width, image.channels);
    std::size_t step = axis ? image.channels : std::size_t(image.width) * image.channels;
    std::vector<double> weights;
    std::vector<int> fixed;
    for (int i = 0; i < size; ++i) {
        double centre = (i + 0.5) * scale;
        int first = std::max(int(centre - support + 0.5), 0), last = std::min(int(centre + support + 0.5), old);
        weights.clear();
        for (int k = first; k < last; ++k) weights.push_back(kernel(name, (k - centre + 0.5) * (1.0 / filter_scale)));
        double total = 0;
        for (double weight : weights) total += weight;
        fixed.clear();
        for (double weight : weights) {
            double value = (total != 0.0 ? weight / total : weight) * (1 << fixed_bits);
            fixed.push_back(int(value < 0 ? value - 0.5 : value + 0.5));
        }
        int lines = axis ? image.height : 1, length = axis ? image.channels : int(step);
        for (int line = 0; line < lines; ++line) {
            std::size_t from = axis ? std::size_t(line) * image.width * image.channels : 0;
            std::size_t to = axis ? std::size_t(line) * size * image.channels : 0;
            const std::uint8_t* source = image.data.data() + from + first * step;
            std::uint8_t* target = out.data.data() + to + i * step;
            for (int j = 0; j < length; ++j) {
                int sum = 1 << (fixed_bits - 1);
                for (std::size_t k = 0; k < fixed.size(); ++k) sum += source[k * step + j] * fixed[k];
                target[j] = std::uint8_t(std::clamp(sum >> fixed_bits, 0, 255));
            }
        }
    }
    return out;
}

// Resize as Pillow 13 does.
inline Pixels resize(Pixels image, int height, int width, const std::string& name) {
    if (name == "nearest") {
        Pixels out(height, width, image.channels);
        auto positions = [](int old, int size) {
            std::vector<int> all;
            double step = double(old) / size, at = step * 0.5;
            for (int i = 0; i < size; ++i, at += step) all.push_back(std::min(int(at), old - 1));
            return all;
        };
        auto rows = positions(image.height, height), columns = positions(image.width, width);
        auto target = out.data.begin();
        for (int y : rows)
            for (int x : columns)
                target = std::copy_n(
                    image.data.begin() + (std::ptrdiff_t(y) * image.width + x) * image.channels, image.channels, target);
        return out;
    }
    bool rows_first = height < image.height && image.height - height > 2 * (image.width - width);
    for (int axis : {rows_first ? 0 : 1, rows_first ? 1 : 0}) {
        int size = axis ? width : height;
        if ((axis ? image.width : image.height) != size) image = resize_axis(image, axis, size, name);
    }
    return image;
}

inline int half_even(int difference) {  // difference / 2, a half to the even neighbour, as Python rounds
    return difference % 2 ? (difference / 2 % 2 ? difference / 2 + 1 : difference / 2) : difference / 2;
}

}  // namespace detail

// Class names and preprocessing of a model: model.json.
class Description {
  public:
    std::vector<std::string> labels;
    std::vector<float> mean, deviation;
    std::string interpolation;
    int resize_side = 0, resize_height = 0, resize_width = 0;  // 0: not given
    int height = 0, width = 0;

    explicit Description(const std::string& path) {
        detail::Json json = detail::JsonReader(detail::read_file(path)).read();
        if (json.at("schema").as_number() != 1) detail::fail(path + ": another schema than 1");
        for (const auto& label : json.at("labels").as_list()) labels.push_back(label.as_text());
        const auto& values = json.at("preprocess");
        mean = values.at("mean").as_floats();
        deviation = values.at("std").as_floats();
        interpolation = values.at("interpolation").as_text();
        std::tie(height, width) = sides(values.at("crop"), path);
        const auto& resize = values.at("resize");
        if (resize.kind == detail::Json::number) resize_side = whole(resize, path);
        if (resize.kind == detail::Json::list) std::tie(resize_height, resize_width) = sides(resize, path);
        bool known = false;
        for (const char* each : {"bilinear", "bicubic", "nearest", "lanczos"}) known |= interpolation == each;
        bool fits = mean.size() == deviation.size() && (mean.size() == 1 || mean.size() == 3);
        for (float each : deviation) fits = fits && each > 0;
        if (!known || !fits) detail::fail(path + ": unknown interpolation, or mean and std of other than 1 or 3 channels");
    }

    // Resize and crop: height * width * channels values, channels last.
    std::vector<std::uint8_t> pixels(const Image& image) const {
        auto whole = detail::with_channels(image, int(mean.size()));
        int rows = resize_height ? resize_height : whole.height, columns = resize_width ? resize_width : whole.width;
        if (resize_side) {
            int shorter = std::min(rows, columns), longer = std::max(rows, columns);
            int long_side = int(double(std::int64_t(resize_side) * longer) / shorter);
            bool upright = columns <= rows;
            rows = upright ? long_side : resize_side;
            columns = upright ? resize_side : long_side;
        }
        if (rows < height || columns < width)
            detail::fail("the image is " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                         ", smaller than the crop after the resize");
        whole = detail::resize(std::move(whole), rows, columns, interpolation);
        int top = detail::half_even(rows - height), left = detail::half_even(columns - width);
        std::size_t row = std::size_t(width) * mean.size();
        std::vector<std::uint8_t> out;
        out.reserve(row * height);
        for (int y = 0; y < height; ++y) {
            auto from = whole.data.begin() + ((std::ptrdiff_t(top) + y) * columns + left) * std::ptrdiff_t(mean.size());
            out.insert(out.end(), from, from + std::ptrdiff_t(row));
        }
        return out;
    }

    // (pixel / 255 - mean) / std per channel, each step in float32.
    std::vector<float> normalize(const std::vector<std::uint8_t>& pixels, bool channels_first) const {
        std::vector<float> out(pixels.size());
        std::size_t channels = mean.size(), area = pixels.size() / channels;
        for (std::size_t i = 0; i < area; ++i)
            for (std::size_t c = 0; c < channels; ++c) {
                float value = float(pixels[i * channels + c]) / 255.0f;
                value = value - mean[c];
                out[channels_first ? c * area + i : i * channels + c] = value / deviation[c];
            }
        return out;
    }

  private:
    static int whole(const detail::Json& json, const std::string& path) {
        double value = json.as_number();
        if (!(value >= 1 && value <= 1e6 && value == std::floor(value))) detail::fail(path + ": a size is no whole number");
        return int(value);
    }

    static std::pair<int, int> sides(const detail::Json& json, const std::string& path) {
        if (json.kind != detail::Json::list) return {whole(json, path), whole(json, path)};
        if (json.items.size() != 2) detail::fail(path + ": a size has two sides");
        return {whole(json.items[0], path), whole(json.items[1], path)};
    }
};

namespace detail {

// The input of an engine: shape with the batch, and the type.
struct Form {
    std::vector<std::int64_t> shape;
    bool pixels = false;  // uint8, else float32
};

#ifdef EDGESHIP_OPENVINO
class Engine {
  public:
    Engine(const std::string& folder, int threads) {
        ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                            ov::hint::inference_precision(ov::element::f32)};  // as in the report
        if (threads > 0) settings.emplace(ov::inference_num_threads(threads));
        compiled_ = core_.compile_model(folder + "/model.xml", "CPU", settings);
        request_ = compiled_.create_infer_request();
        auto input = compiled_.input();
        for (const auto& side : input.get_partial_shape()) form.shape.push_back(side.is_static() ? side.get_length() : -1);
        form.pixels = input.get_element_type() == ov::element::u8;
    }

    std::vector<float> run(const void* data, const std::vector<std::int64_t>& shape) {
        ov::Shape sides(shape.begin(), shape.end());
        request_.set_input_tensor(ov::Tensor(form.pixels ? ov::element::u8 : ov::element::f32, sides, const_cast<void*>(data)));
        request_.infer();
        auto output = request_.get_output_tensor();
        return {output.data<float>(), output.data<float>() + output.get_size() / sides[0]};
    }

    Form form;

  private:
    ov::Core core_;
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};
#endif

#ifdef EDGESHIP_TENSORRT
inline void check(cudaError_t code, const char* what) {
    if (code != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(code));
}

class Engine {
  public:
    Engine(const std::string& folder, int) {
        std::string plan = read_file(folder + "/model.plan");
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (engine_) context_.reset(engine_->createExecutionContext());
        if (!context_) fail(folder + "/model.plan cannot be loaded: " + log_.last);
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            (is_input ? input_ : output_) = name;
        }
        auto dims = engine_->getTensorShape(input_.c_str());
        form.shape.assign(dims.d, dims.d + dims.nbDims);
        form.pixels = engine_->getTensorDataType(input_.c_str()) == nvinfer1::DataType::kUINT8;
        check(cudaStreamCreate(&stream_), "creating a stream");
    }

    ~Engine() {
        cudaFree(device_input_);
        cudaFree(device_output_);
        if (stream_) cudaStreamDestroy(stream_);
    }

    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    std::vector<float> run(const void* data, const std::vector<std::int64_t>& shape) {
        nvinfer1::Dims dims{};
        dims.nbDims = int(shape.size());
        std::size_t bytes = form.pixels ? 1 : sizeof(float);
        for (std::size_t i = 0; i < shape.size(); ++i) {
            dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
            bytes *= std::size_t(shape[i]);
        }
        if (!context_->setInputShape(input_.c_str(), dims)) fail("the engine refuses the input shape: " + log_.last);
        auto out = context_->getTensorShape(output_.c_str());
        std::size_t count = 1;
        for (int i = 0; i < out.nbDims; ++i) count *= std::size_t(out.d[i]);
        if (!device_input_) check(cudaMalloc(&device_input_, bytes), "allocating the input");
        if (!device_output_) check(cudaMalloc(&device_output_, count * sizeof(float)), "allocating the output");
        context_->setTensorAddress(input_.c_str(), device_input_);
        context_->setTensorAddress(output_.c_str(), device_output_);
        std::vector<float> logits(count);
        check(cudaMemcpyAsync(device_input_, data, bytes, cudaMemcpyHostToDevice, stream_), "copying the input");
        if (!context_->enqueueV3(stream_)) fail("the inference failed: " + log_.last);
        check(cudaMemcpyAsync(logits.data(), device_output_, count * sizeof(float), cudaMemcpyDeviceToHost, stream_),
              "copying the output");
        check(cudaStreamSynchronize(stream_), "waiting for the inference");
        logits.resize(count / std::size_t(shape[0]));
        return logits;
    }

    Form form;

  private:
    struct Log : nvinfer1::ILogger {
        std::string last;
        void log(Severity severity, const char* message) noexcept override {
            if (severity <= Severity::kERROR) last = message;
        }
    } log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::string input_, output_;
    cudaStream_t stream_ = nullptr;
    void *device_input_ = nullptr, *device_output_ = nullptr;
};
#endif

}  // namespace detail

#if defined(EDGESHIP_OPENVINO) || defined(EDGESHIP_TENSORRT)
// An engine with its preprocessing and class names.
class Classifier {
  public:
    // threads: CPU threads; 0: all that the process may use.
    explicit Classifier(const std::string& folder, int threads = 0)
        : description_(folder + "/model.json"), engine_(folder, threads) {
        std::int64_t channels = std::int64_t(description_.mean.size());
        std::vector<std::int64_t> first{channels, description_.height, description_.width};
        std::vector<std::int64_t> last{description_.height, description_.width, channels};
        const auto& shape = engine_.form.shape;
        auto fits = [&](const std::vector<std::int64_t>& sides) {
            bool equal = shape.size() == 4;
            for (std::size_t i = 0; equal && i < 3; ++i) equal = shape[i + 1] == -1 || shape[i + 1] == sides[i];
            return equal;
        };
        channels_first_ = !engine_.form.pixels && fits(first);
        if (!channels_first_ && !fits(last)) detail::fail("engine and model.json describe different images");
        shape_ = channels_first_ ? first : last;
        shape_.insert(shape_.begin(), shape[0] > 0 ? shape[0] : 1);
    }

    const Description& description() const { return description_; }

    Result operator()(const Image& image) {
        auto pixels = description_.pixels(image);
        Result result;
        std::size_t batch = std::size_t(shape_[0]);
        if (engine_.form.pixels) {
            pixels.resize(pixels.size() * batch);  // zeros complete a fixed batch
            result.logits = engine_.run(pixels.data(), shape_);
        } else {
            auto inputs = description_.normalize(pixels, channels_first_);
            inputs.resize(inputs.size() * batch);
            result.logits = engine_.run(inputs.data(), shape_);
        }
        if (result.logits.size() != description_.labels.size())
            detail::fail(std::to_string(description_.labels.size()) + " class names for " +
                         std::to_string(result.logits.size()) + " outputs");
        result.labels = description_.labels;
        result.probabilities = probabilities(result.logits);
        return result;
    }

  private:
    static std::vector<float> probabilities(const std::vector<float>& logits) {
        float sum = 0;
        bool positive = true;
        for (float each : logits) sum += each, positive = positive && each >= 0;
        if (positive && std::fabs(sum - 1) < 1e-3f) return logits;  // the graph ends in a Softmax
        double most = *std::max_element(logits.begin(), logits.end()), total = 0;
        std::vector<double> powers;
        for (float each : logits) powers.push_back(std::exp(double(each) - most));
        for (double each : powers) total += each;
        std::vector<float> shares;
        for (double each : powers) shares.push_back(float(each / total));
        return shares;
    }

    Description description_;
    detail::Engine engine_;
    bool channels_first_ = false;
    std::vector<std::int64_t> shape_;
};
#endif

}  // namespace edgeship
