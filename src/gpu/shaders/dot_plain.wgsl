fn dot4(a: u32, b: u32) -> i32 {
    return dot(unpack4xI8(a), unpack4xI8(b));
}
