// The statistic of a rule on the read-out (`exit::kl` and those beside it), of the only row. One workgroup.
struct Params {
    vocab: u32,
    // 1: there is no read-out before this one.
    first: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> logits: array<f32>;
// The read-out that was checked before.
@group(0) @binding(4) var<storage, read_write> previous: array<f32>;
// The statistic; then of the read-out checked last: ln Σ exp, largest, entropy, most likely token.
@group(0) @binding(5) var<storage, read_write> readout: array<f32>;

const THREADS: u32 = 256u;
var<workgroup> parts: array<vec2<f32>, 256>;
var<workgroup> tops: array<u32, 256>;

fn total(thread: u32, mine: vec2<f32>) -> vec2<f32> {
    parts[thread] = mine;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}

// The largest logit, and the first place where it stands.
fn top(thread: u32) -> u32 {
    var best = -3.4e38;
    var at = 0u;
    for (var i = thread; i < p.vocab; i += THREADS) {
        if (logits[i] > best) {
            best = logits[i];
            at = i;
        }
    }
    parts[thread] = vec2<f32>(best, 0.0);
    tops[thread] = at;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            let other = parts[thread + half].x;
            if (other > parts[thread].x || (other == parts[thread].x && tops[thread + half] < tops[thread])) {
                parts[thread] = vec2<f32>(other, 0.0);
                tops[thread] = tops[thread + half];
            }
        }
        workgroupBarrier();
    }
    let all = tops[0];
    workgroupBarrier();
    return all;
}

fn before(i: u32) -> f32 {
    return select(previous[i], 0.0, p.first != 0u);
}

// The logarithm of a token's probability once the tail has been levelled, but for the sum over all.
fn levelled(x: f32, log_sum: f32, largest: f32) -> f32 {
    // ln 0.1
    return select(x - log_sum, -log(f32(p.vocab)), x < largest - 2.302585);
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    // The same for all threads: nobody waits in vain.
    if (flow[2] == 0u) {
        return;
    }
    let best = top(thread);
    let largest = logits[best];
    var sum = 0.0;
    for (var i = thread; i < p.vocab; i += THREADS) {
        sum += exp(logits[i] - largest);
    }
    let log_sum = largest + log(total(thread, vec2<f32>(sum, 0.0)).x);
    let old_sum = select(readout[1], log(f32(p.vocab)), p.first != 0u);
    let old_largest = select(readout[2], 0.0, p.first != 0u);
    var statistic = 0.0;
    var entropy = 0.0;
    switch (rule.statistic) {
        case KL: {
            var mine = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let old = before(i) - old_sum;
                mine += exp(old) * (old - (logits[i] - log_sum));
            }
            statistic = total(thread, vec2<f32>(mine, 0.0)).x;
        }
        case MIN_P_KL: {
            var sums = vec2<f32>(0.0);
            for (var i = thread; i < p.vocab; i += THREADS) {
                sums += exp(vec2<f32>(levelled(before(i), old_sum, old_largest), levelled(logits[i], log_sum, largest)));
            }
            let logs = log(total(thread, sums));
            var mine = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let a = levelled(before(i), old_sum, old_largest) - logs.x;
                let b = levelled(logits[i], log_sum, largest) - logs.y;
                mine += exp(a) * (a - b);
            }
            statistic = total(thread, vec2<f32>(mine, 0.0)).x;
        }
        case ENTROPY: {
            var mine = 0.0;
            for (var i = thread; i < p.vocab; i += THREADS) {
                let probability = exp(logits[i] - log_sum);
                mine -= probability * log(probability + 1e-10);
            }
            entropy = total(thread, vec2<f32>(mine, 0.0)).x;
            statistic = abs(entropy - select(readout[3], 100.0, p.first != 0u));
        }
        default: {
            let same = p.first == 0u && bitcast<u32>(readout[4]) == best;
            statistic = select(1.0, 0.0, same);
        }
    }
    workgroupBarrier();
    storageBarrier();
    for (var i = thread; i < p.vocab; i += THREADS) {
        previous[i] = logits[i];
    }
    if (thread == 0u) {
        readout[0] = statistic;
        readout[1] = log_sum;
        readout[2] = largest;
        readout[3] = entropy;
        readout[4] = bitcast<f32>(best);
    }
}
