// Who stays in the loop: the exit rule, the rows that go on moved together, and how many workgroups the kernels behind need.
// One workgroup. What the statistics and settings mean is said in `exit`; words of `flow` in flow.wgsl.
struct Params {
    // What is decided: 0: the loop begins; 1: a step is done; 2: a read-out is; 3: the last read-out is to come.
    moment: u32,
    // Which loop, and is it the last?
    number: u32,
    last: u32,
    // Where in `flow` the rows in the loop are listed, and where this loop's steps are noted.
    listed: u32,
    steps: u32,
    // Where this loop's depths begin in `depths`, and positions per sequence.
    depths: u32,
    context: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> flow: array<u32>;
@group(0) @binding(3) var<storage, read> places: array<vec4<u32>>;
// As settle.wgsl writes them, as bits: what is no number is told from them, which no optimisation of sums can hide.
@group(0) @binding(4) var<storage, read> statistics: array<u32>;
// Per row: hits so far, Π (1 − λ), Σ p.
@group(0) @binding(5) var<storage, read_write> memory: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> depths: array<u32>;
// Per size of dispatch: workgroups per row or rows per workgroup, and which word of `flow` counts its rows.
@group(0) @binding(7) var<storage, read> grids: array<vec4<u32>>;
@group(0) @binding(8) var<storage, read_write> sizes: array<u32>;
// What readout.wgsl makes of the only row's read-out: its statistic comes first.
@group(0) @binding(9) var<storage, read> readout: array<u32>;

const THREADS: u32 = 256u;
var<workgroup> staying: array<u32, 256>;
// The first row that is no number.
var<workgroup> bad: atomic<u32>;

fn finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

fn number(row: u32, i: u32) -> f32 {
    return bitcast<f32>(statistics[8u * row + i]);
}

fn most_steps() -> u32 {
    return max(rule.most[p.number / 4u][p.number % 4u], 1u);
}

fn checked(step: u32) -> bool {
    return step > rule.min && (step - rule.min - 1u) % rule.every == 0u && step < rule.max;
}

// Is the statistic a hit? One that does not exist is none.
fn hit(row: u32, step: u32) -> bool {
    let state = sqrt(number(row, 0u));
    let now = sqrt(number(row, 1u));
    let before = sqrt(number(row, 2u));
    let change = sqrt(number(row, 3u));
    let second = step > 1u;
    switch (rule.statistic) {
        case ACCELERATION: {
            return second && state > 0.0 && change / state < rule.threshold;
        }
        case ACCELERATION_RAW: {
            return second && change < rule.threshold;
        }
        case ACCELERATION_BY_STEP: {
            return second && now + before > 0.0 && change / (now + before) < rule.threshold;
        }
        case STEP_NORM: {
            return state > 0.0 && now / state < rule.threshold;
        }
        case COSINE: {
            let length = state * sqrt(number(row, 6u));
            return length > 0.0 && 1.0 - number(row, 5u) / length < rule.threshold;
        }
        case GATE: {
            return memory[row].z >= rule.threshold;
        }
        default: {
            return false;
        }
    }
}

fn leave(row: u32, step: u32) {
    let place = places[row];
    depths[p.depths + place.z * p.context + place.x] = step;
}

// Counts a hit or ends the run of them.
fn count(row: u32, is_hit: bool) -> bool {
    let run = select(0.0, memory[row].x + 1.0, is_hit);
    memory[row].x = run;
    return run >= f32(rule.hits);
}

// Does a row go on behind its step `step`?
fn goes_on(row: u32, step: u32) -> bool {
    flow[p.steps + row] = step;
    if (!finite(statistics[8u * row])) {
        atomicMin(&bad, row);
        return false;
    }
    if (rule.statistic == GATE) {
        let lambda = 1.0 / (1.0 + exp(clamp(-number(row, 7u), -80.0, 80.0)));
        let m = memory[row];
        memory[row] = vec4<f32>(m.x, m.y * (1.0 - lambda), m.z + lambda * m.y, 0.0);
        if (!finite(statistics[8u * row + 7u])) {
            // It and all that follow are no number, and reach nothing.
            memory[row].z = -3.0e38;
        }
    }
    let capped = step >= most_steps();
    if (rule.statistic >= KL) {
        let asks = rule.readout != 0u && p.last != 0u && checked(step);
        if (asks) {
            flow[2] = 1u;
        }
        return asks || !capped;
    }
    let leaves = checked(step) && count(row, hit(row, step));
    return !(leaves || capped);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    if (p.moment == 0u) {
        let all = flow[0];
        for (var row = thread; row < all; row += THREADS) {
            flow[p.listed + row] = row;
            flow[p.steps + row] = 0u;
            memory[row] = vec4<f32>(0.0, 1.0, 0.0, 0.0);
            leave(row, 0xffffffffu);
        }
        if (thread == 0u) {
            flow[1] = all;
            flow[2] = 0u;
            flow[3] = 0u;
            flow[7] = 0u;
        }
    } else if (p.moment == 1u) {
        let count = flow[1];
        let step = flow[3] + 1u;
        // A run of rows per thread, so that those that stay keep their order.
        let run = (count + THREADS - 1u) / THREADS;
        let start = min(thread * run, count);
        let to = min(start + run, count);
        if (thread == 0u) {
            flow[2] = 0u;
            atomicStore(&bad, 0xffffffffu);
        }
        workgroupBarrier();
        storageBarrier();
        var stay = 0u;
        for (var i = start; i < to; i++) {
            let row = flow[p.listed + i];
            if (goes_on(row, step)) {
                // The place that it moves to within the run is behind those that were read.
                flow[p.listed + start + stay] = row;
                stay += 1u;
            } else {
                leave(row, step);
            }
        }
        staying[thread] = stay;
        workgroupBarrier();
        storageBarrier();
        if (thread == 0u) {
            if (count > 0u) {
                flow[3] = step;
                if (atomicLoad(&bad) != 0xffffffffu) {
                    flow[5] = atomicLoad(&bad) + 1u;
                    flow[6] = step;
                }
            }
            var total = 0u;
            for (var t = 0u; t < THREADS; t++) {
                let start = min(t * run, count);
                for (var i = 0u; i < staying[t]; i++) {
                    flow[p.listed + total + i] = flow[p.listed + start + i];
                }
                total += staying[t];
            }
            // Nobody waits for rows of a chunk that is lost.
            flow[1] = select(total, 0u, flow[5] != 0u);
        }
    } else if (p.moment == 2u) {
        if (thread == 0u && flow[2] != 0u) {
            let step = flow[3];
            let is_hit = finite(readout[0]) && bitcast<f32>(readout[0]) < rule.threshold;
            if (count(0u, is_hit) || step >= most_steps()) {
                leave(0u, step);
                flow[1] = 0u;
                flow[7] = 1u;
            }
            flow[2] = 0u;
        }
    } else if (thread == 0u) {
        flow[2] = 1u - flow[7];
    }
    workgroupBarrier();
    storageBarrier();
    for (var g = thread; g < arrayLength(&grids); g += THREADS) {
        let grid = grids[g];
        let n = flow[grid.z];
        // Rows along y, so many to a workgroup; or, where there are no columns, along x.
        let rows = (n + grid.y - 1u) / grid.y;
        sizes[3u * g] = select(grid.x, rows, grid.x == 0u);
        sizes[3u * g + 1u] = select(rows, 1u, grid.x == 0u);
        sizes[3u * g + 2u] = 1u;
    }
}
