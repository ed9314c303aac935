# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# distutils: extra_compile_args = -O3 -ffp-contract=off
"""Mask geometry on the CPU: (probabilities, box) -> COCO RLE, and polygon or bitmap -> target inside a region.

The encoder must decide each pixel as torch's kernels do, to the last bit. Most pixels are far from the threshold, where
any order of summation gives the same answer; only the others are computed again by `exact_value`, in torch's order.
Multiply-adds are written out as `fmaf` where torch's build fuses them, so the compiler may not fuse any by itself
(-ffp-contract=off above). A bare literal is a double in C, so none stands between two float operations below.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, ceil, fabsf, floorf, fmaf
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

# Order in which torch adds the four products of a bilinear sample.
cdef enum Order:
    ALONG_X_THEN_Y  # upsample_bilinear2d, the general kernel
    FOUR_PRODUCTS  # upsample_bilinear2d, the kernel for outputs of height + width <= 128
    FOUR_PRODUCTS_GRID  # grid_sample

# One pixel of an axis reads padded mask cells `low` and `high`, weighted.
cdef struct Tap:
    int low
    int high
    float weight_low
    float weight_high

# Pixels [first, last) of a column that read the same two rows of the padded mask.
cdef struct Segment:
    int first
    int last
    int low
    int high

cdef struct Runs:
    uint32_t *counts
    Py_ssize_t size
    Py_ssize_t capacity
    uint32_t length  # of the run that is being extended
    bint value
    bint failed

cdef struct Sampling:
    Order order
    bint fused
    bint inclusive  # value >= threshold, else value > threshold
    float threshold
    float margin  # beyond it, rounding cannot change the decision


# --- runs

cdef void push(Runs *runs) noexcept nogil:
    cdef uint32_t *grown
    if runs.size == runs.capacity:
        grown = <uint32_t *> realloc(runs.counts, 2 * runs.capacity * sizeof(uint32_t))
        if grown == NULL:
            runs.failed = True
            return
        runs.counts = grown
        runs.capacity *= 2
    runs.counts[runs.size] = runs.length
    runs.size += 1


cdef inline void extend(Runs *runs, bint value, uint32_t length) noexcept nogil:
    if length == 0:
        return
    if value != runs.value:
        push(runs)
        runs.value = value
        runs.length = 0
    runs.length += length


cdef Py_ssize_t compress(const Runs *runs, char *text) noexcept nogil:
    """COCO's text form: from the fourth on, a count is the difference to the count two before; 5 bits a character.

    Returns the number of characters; with `text` NULL only counts them.
    """
    cdef Py_ssize_t i, size = 0
    cdef int64_t rest
    cdef int code
    cdef bint more
    for i in range(runs.size):
        rest = runs.counts[i]
        if i > 2:
            rest -= runs.counts[i - 2]
        more = True
        while more:
            code = rest & 0x1F
            rest >>= 5
            more = rest != -1 if code & 0x10 else rest != 0
            if text != NULL:
                text[size] = <char> ((code | 0x20 if more else code) + 48)
            size += 1
    return size


# --- where a pixel reads the mask

cdef Tap resize_tap(int64_t pixel, int64_t pixels, int cells, bint fused_position) noexcept nogil:
    """Pixel of a bilinear resize of `cells` to `pixels`, align_corners=False."""
    cdef Tap tap
    cdef float scale, centre, position
    if cells == pixels:
        tap.low = tap.high = <int> pixel
        tap.weight_low, tap.weight_high = 1, 0
        return tap
    scale = <float> cells / <float> pixels
    centre = <float> pixel + <float> 0.5
    position = fmaf(scale, centre, -<float> 0.5) if fused_position else scale * centre - <float> 0.5
    if position < 0:
        position = 0
    tap.low = min(<int> floorf(position), cells - 1)
    tap.high = min(tap.low + 1, cells - 1)
    tap.weight_high = min(max(position - <float> tap.low, <float> 0), <float> 1)
    tap.weight_low = <float> 1 - tap.weight_high
    return tap


cdef Tap grid_tap(int pixel, float start, float end, int cells, bint fused) noexcept nogil:
    """Pixel centre in a box that the mask fills, read by grid_sample; `cells` without padding, low and high with it."""
    cdef Tap tap
    cdef float grid = (<float> pixel + <float> 0.5 - start) / (end - start) * <float> 2 - <float> 1
    cdef float from_edge = grid + <float> 1, half = <float> cells / <float> 2
    cdef float position = fmaf(from_edge, half, -<float> 0.5) if fused else from_edge * half - <float> 0.5
    cdef float cell = floorf(position)
    tap.weight_high = position - cell
    tap.weight_low = <float> 1 - tap.weight_high
    # Cells outside the mask are zero, as the padding is; NaN and infinity go there too and stay in the weights.
    if not cell >= -2:
        cell = -2
    if not cell <= cells:
        cell = cells
    tap.low = min(max(<int> cell + 1, 0), cells + 1)
    tap.high = min(max(<int> cell + 2, 0), cells + 1)
    return tap


cdef int group(const Tap *taps, int count, Segment *segments) noexcept nogil:
    cdef int i, size = 0
    for i in range(count):
        if size == 0 or taps[i].low != segments[size - 1].low or taps[i].high != segments[size - 1].high:
            segments[size].first = i
            segments[size].low = taps[i].low
            segments[size].high = taps[i].high
            size += 1
        segments[size - 1].last = i + 1
    return size


# --- one mask

cdef inline float multiply_add(float a, float b, float c, bint fused) noexcept nogil:
    return fmaf(a, b, c) if fused else a * b + c


cdef float exact_value(const float *columns, int cells, Tap x, Tap y, const Sampling *how) noexcept nogil:
    """The pixel as torch computes it, each rounding included."""
    cdef float nw = columns[x.low * cells + y.low], ne = columns[x.high * cells + y.low]
    cdef float sw = columns[x.low * cells + y.high], se = columns[x.high * cells + y.high]
    cdef bint fused = how.fused
    cdef float upper, lower, value
    if how.order == ALONG_X_THEN_Y:
        upper = multiply_add(nw, x.weight_low, ne * x.weight_high, fused)
        lower = multiply_add(sw, x.weight_low, se * x.weight_high, fused)
        return multiply_add(upper, y.weight_low, lower * y.weight_high, fused)
    if how.order == FOUR_PRODUCTS:
        value = multiply_add(y.weight_low * x.weight_low, nw, (y.weight_low * x.weight_high) * ne, fused)
    else:
        value = multiply_add(y.weight_low * x.weight_high, ne, (y.weight_low * x.weight_low) * nw, fused)
    value = multiply_add(y.weight_high * x.weight_low, sw, value, fused)
    return multiply_add(y.weight_high * x.weight_high, se, value, fused)


cdef inline bint is_set(
    const float *columns, int cells, const Tap *x, const Tap *y, float upper, float lower, const Sampling *how
) noexcept nogil:
    cdef float value = upper * y.weight_low + lower * y.weight_high
    if not fabsf(value - how.threshold) > how.margin:  # NaN comes here too
        value = exact_value(columns, cells, x[0], y[0], how)
    return value >= how.threshold if how.inclusive else value > how.threshold


cdef void encode_columns(
    const float *columns, int cells, const Tap *x_taps, int x_count, const Tap *y_taps, int y_count,
    Segment *segments, float *line, int x_first, int y_first, int height, int width, const Sampling *how, Runs *runs
) noexcept nogil:
    """Append the whole image's runs; `columns` is the padded mask, column-major, `line` room for one column of it."""
    cdef int i, j, s, above = y_first, below = height - y_first - y_count
    cdef int segment_count = group(y_taps, y_count, segments)
    cdef float sure_set = how.threshold + how.margin, sure_clear = how.threshold - how.margin
    cdef float low, high
    cdef const float *left
    cdef const float *right
    extend(runs, False, <uint32_t> x_first * <uint32_t> height)
    for i in range(x_count):
        left, right = columns + x_taps[i].low * cells, columns + x_taps[i].high * cells
        for j in range(cells):
            line[j] = left[j] * x_taps[i].weight_low + right[j] * x_taps[i].weight_high
        extend(runs, False, above)
        for s in range(segment_count):
            low, high = line[segments[s].low], line[segments[s].high]
            if low > sure_set and high > sure_set:
                extend(runs, True, segments[s].last - segments[s].first)
            elif low < sure_clear and high < sure_clear:
                extend(runs, False, segments[s].last - segments[s].first)
            else:
                for j in range(segments[s].first, segments[s].last):
                    extend(runs, is_set(columns, cells, x_taps + i, y_taps + j, low, high, how), 1)
        extend(runs, False, below)
    extend(runs, False, <uint32_t> (width - x_first - x_count) * <uint32_t> height)
    push(runs)


cdef void pad(const float[:, ::1] mask, int size, float *columns) noexcept nogil:
    """Copy with a border of one zero, column-major."""
    cdef int i, j, cells = size + 2
    memset(columns, 0, cells * cells * sizeof(float))
    for j in range(size):
        for i in range(size):
            columns[(i + 1) * cells + j + 1] = mask[j, i]


cdef float largest(const float *values, int count) noexcept nogil:
    """Largest magnitude, at least 1 so that the margin also covers a threshold far above the values; NaN if any is."""
    cdef int i
    cdef float result = 1
    for i in range(count):
        if not fabsf(values[i]) <= result:
            result = fabsf(values[i])
            if result != result:
                return result
    return result


def encode_roi_masks(
    const float[:, :, ::1] masks,
    const int64_t[:, ::1] pasted,
    const float[:, ::1] boxes,
    int height,
    int width,
    float threshold,
    bint centres,
    bint fused,
):
    """Compressed RLE of every mask pasted into an image.

    Args:
        masks: (D, M, M).
        pasted: (D, 4), first and last + 1 pixel of the image that the mask may reach: x0 y0 x1 y1, not clipped when
            `centres` is False (there it also fixes the resize), clipped when it is True.
        boxes: (D, 4), where the mask lies; read only when `centres` is True.
        threshold: pixel set if value > threshold, with `centres` if value >= threshold.
        centres: sample the mask at pixel centres (Detectron2), else resize it to whole pixels (torchvision).
        fused: torch's kernels fuse multiply-adds.

    Returns:
        D byte strings.
    """
    cdef Py_ssize_t d, count = masks.shape[0]
    cdef int size = masks.shape[1]
    cdef int cells = size + 2, i, x_first, x_count, y_first, y_count
    cdef int64_t x_pixels, y_pixels
    cdef bint fused_position
    cdef Sampling how
    cdef Runs runs
    cdef float *columns = <float *> malloc((cells + 1) * cells * sizeof(float))
    cdef Tap *x_taps = <Tap *> malloc((width + height + 1) * sizeof(Tap))
    cdef Segment *segments = <Segment *> malloc((height + 1) * sizeof(Segment))
    cdef Tap *y_taps = x_taps + width
    cdef bytes text
    runs.capacity = 256
    runs.counts = <uint32_t *> malloc(runs.capacity * sizeof(uint32_t))
    runs.failed = columns == NULL or x_taps == NULL or segments == NULL or runs.counts == NULL
    how.threshold, how.fused, how.inclusive = threshold, fused, centres
    result = []
    try:
        for d in range(count):
            if runs.failed:
                raise MemoryError("no memory for the runs of a mask")
            with nogil:
                runs.size = runs.length = 0
                runs.value = False
                pad(masks[d], size, columns)
                how.margin = <float> 1e-5 * largest(columns, cells * cells)
                x_first, y_first = <int> min(max(pasted[d, 0], 0), width), <int> min(max(pasted[d, 1], 0), height)
                x_count = <int> min(max(pasted[d, 2], 0), width) - x_first
                y_count = <int> min(max(pasted[d, 3], 0), height) - y_first
                if x_count <= 0 or y_count <= 0:
                    x_first = x_count = y_first = y_count = 0
                if centres:
                    how.order = FOUR_PRODUCTS_GRID
                    for i in range(x_count):
                        x_taps[i] = grid_tap(x_first + i, boxes[d, 0], boxes[d, 2], size, fused)
                    for i in range(y_count):
                        y_taps[i] = grid_tap(y_first + i, boxes[d, 1], boxes[d, 3], size, fused)
                else:
                    x_pixels, y_pixels = pasted[d, 2] - pasted[d, 0], pasted[d, 3] - pasted[d, 1]
                    how.order = FOUR_PRODUCTS if x_pixels + y_pixels <= 128 else ALONG_X_THEN_Y
                    fused_position = fused and how.order == FOUR_PRODUCTS
                    for i in range(x_count):
                        x_taps[i] = resize_tap(x_first + i - pasted[d, 0], x_pixels, cells, fused_position)
                    for i in range(y_count):
                        y_taps[i] = resize_tap(y_first + i - pasted[d, 1], y_pixels, cells, fused_position)
                encode_columns(
                    columns, cells, x_taps, x_count, y_taps, y_count, segments, columns + cells * cells,
                    x_first, y_first, height, width, &how, &runs,
                )
            if not runs.failed:
                text = PyBytes_FromStringAndSize(NULL, compress(&runs, NULL))
                compress(&runs, PyBytes_AS_STRING(text))
                result.append(text)
    finally:
        free(columns)
        free(x_taps)
        free(segments)
        free(runs.counts)
    return result


# --- targets inside a region

cdef inline double centre(double origin, double step, int i) noexcept nogil:
    return origin + (i + 0.5) * step


cdef int first_at_least(double origin, double step, int count, double value) noexcept nogil:
    """Smallest i in [0, count] whose pixel centre is not below `value`; steps are not negative."""
    cdef double guess
    cdef int i
    if step == 0:
        return count if origin < value else 0
    guess = (value - origin) / step - 0.5
    i = 0 if not guess > 0 else count if guess >= count else <int> ceil(guess)
    while i > 0 and centre(origin, step, i - 1) >= value:
        i -= 1
    while i < count and centre(origin, step, i) < value:
        i += 1
    return i


def fill_polygons(
    const double[:, ::1] points,
    const int64_t[::1] starts,
    double x1, double y1, double x2, double y2,
    uint8_t[:, ::1] out,
):
    """Set the pixels of `out`, a grid over the box x1 y1 x2 y2, whose centre lies in a part (even-odd in each).

    Args:
        points: (V, 2), the vertices of all parts.
        starts: (parts + 1,), where each part begins in `points`, and V.
        out: (h, w) of zeros.
    """
    cdef int rows = out.shape[0], columns = out.shape[1], row, column, last
    cdef double x_step = (x2 - x1) / columns, y_step = (y2 - y1) / rows, slope
    cdef Py_ssize_t part, a, b, upper, lower
    cdef uint8_t inside
    if not (0 <= x_step < INFINITY and 0 <= y_step < INFINITY):
        return
    with nogil:
        for part in range(starts.shape[0] - 1):
            # Bit 1 marks where a row enters or leaves the part, bit 0 what the parts before have set.
            b = starts[part + 1] - 1
            for a in range(starts[part], starts[part + 1]):
                upper, lower = (a, b) if points[a, 1] < points[b, 1] else (b, a)
                b = a
                slope = (points[lower, 0] - points[upper, 0]) / (points[lower, 1] - points[upper, 1])
                last = first_at_least(y1, y_step, rows, points[lower, 1])
                for row in range(first_at_least(y1, y_step, rows, points[upper, 1]), last):
                    column = first_at_least(
                        x1, x_step, columns, points[upper, 0] + (centre(y1, y_step, row) - points[upper, 1]) * slope
                    )
                    if column < columns:
                        out[row, column] ^= 2
            for row in range(rows):
                inside = 0
                for column in range(columns):
                    inside ^= out[row, column] >> 1
                    out[row, column] = (out[row, column] & 1) | inside


def sample_bitmap(
    const uint8_t[:, ::1] patch,
    const double[:, ::1] to_patch,
    double x1, double y1, double x2, double y2,
    uint8_t[:, ::1] out,
):
    """Set the pixels of `out`, a grid over the box x1 y1 x2 y2, whose centre lies in a set pixel of `patch`.

    Args:
        patch: (h, w).
        to_patch: (2, 3), from the box's frame to the patch's.
        out: (H, W).
    """
    cdef int rows = out.shape[0], columns = out.shape[1], row, column
    cdef double x_step = (x2 - x1) / columns, y_step = (y2 - y1) / rows, x, y, u, v
    if not (0 <= x_step < INFINITY and 0 <= y_step < INFINITY):
        return
    with nogil:
        for row in range(rows):
            y = centre(y1, y_step, row)
            for column in range(columns):
                x = centre(x1, x_step, column)
                u = to_patch[0, 0] * x + to_patch[0, 1] * y + to_patch[0, 2]
                v = to_patch[1, 0] * x + to_patch[1, 1] * y + to_patch[1, 2]
                # False for NaN, and before the cast, which is undefined beyond an int.
                if 0 <= u < patch.shape[1] and 0 <= v < patch.shape[0]:
                    out[row, column] = patch[<int> v, <int> u] != 0
